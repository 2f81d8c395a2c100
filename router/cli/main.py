"""The `leafcutter` command: the only reader of argv and the environment.

leafcutter up        start engines and the gateway in front of them
leafcutter serve     the gateway alone, in front of engines that run already
leafcutter record    the same, and its traffic written as a trace
leafcutter doctor    say what is wrong with engines and options
leafcutter bench     measure the eviction orders on traces
leafcutter simulate compare policies, orders and fleets on a simulated one
leafcutter keys      make a key for a client
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import logging
import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from functools import partial
from importlib import metadata
from typing import Any, TypeVar

import uvloop

from router import descriptors, logs
from router.cli import bench_eviction as bench
from router.cli import keys, simulate
from router.cli.flags import add_options
from router.config import Config, UpConfig
from router.errors import ConfigError, LeafcutterError, TraceError
from router.gateway.config_file import ConfigFile, read
from router.options import options_of

log = logging.getLogger("leafcutter")
C = TypeVar("C", bound=Config)
RECORD = "traffic.jsonl.gz"
SCANT_FILES = 4096  # with fewer file descriptors, the log says so


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; the exit status is 0, 1 for a failure, 2 for a wrong option."""
    arguments = parser().parse_args(argv)
    try:
        status: int = arguments.start(arguments)
    except (ConfigError, TraceError) as error:
        print(f"leafcutter: {error}", file=sys.stderr)
        return 2
    except LeafcutterError as error:
        print(f"leafcutter: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return status


def start(arguments: argparse.Namespace) -> int:
    """A command whose options are declared in `config`. Raises LeafcutterError."""
    file = None
    if arguments.config and arguments.follows:
        file = ConfigFile.at_start(arguments.config, os.environ, flags_of(arguments.spec, arguments))
    config = load(arguments.spec, arguments, os.environ) if file is None else file.config
    logs.set_up(config.server)
    status: int = arguments.run(config, file) if arguments.follows else arguments.run(config)
    return status


def parser() -> argparse.ArgumentParser:
    """The one parser: every option of every command."""
    top = argparse.ArgumentParser(prog="leafcutter", description="A live serving router for vLLM engines.")
    top.add_argument("--version", action="version", version=f"leafcutter {metadata.version('leafcutter-router')}")
    commands = top.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for name, spec, run, words in (
        ("up", UpConfig, run_up, "start engines and the gateway in front of them"),
        ("serve", Config, run_serve, "run the gateway in front of engines that run already"),
        ("record", Config, run_record, f"as serve, and write the traffic as a trace (--record, or {RECORD})"),
        ("doctor", Config, run_doctor, "say what is wrong with the engines and how to mend it"),
    ):
        usage = f"leafcutter {name} [--OPTION VALUE ...]"
        command = commands.add_parser(name, help=words, description=words, usage=usage, allow_abbrev=False)
        command.set_defaults(start=start, spec=spec, run=run, follows=name in ("serve", "record"))
        add_options(command, spec)
    _add_bench(commands)
    words = "compare policies, orders and fleets on simulated engines"
    command = commands.add_parser("simulate", help=words, description=words, allow_abbrev=False)
    command.set_defaults(start=simulate.run)
    simulate.add_arguments(command)
    command = commands.add_parser("keys", help="make a key for a client", description="make a key for a client")
    command.set_defaults(start=keys.run)
    keys.add_arguments(command)
    return top


def _add_bench(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    words = "measure the eviction orders on traces"
    command = commands.add_parser("bench", help=words, description=words)

    def explain(_: argparse.Namespace) -> int:
        command.print_help()
        return 0

    command.set_defaults(start=explain)
    words = "hit rates and costs of eviction orders on traces and workloads"
    eviction = command.add_subparsers(metavar="WHAT").add_parser(
        "eviction", help=words, description=words, allow_abbrev=False
    )
    eviction.set_defaults(start=bench.run)
    bench.add_arguments(eviction)


def load(spec: type[C], arguments: argparse.Namespace, env: Mapping[str, str]) -> C:
    """The options of one command from its file, the environment and its flags. Raises ConfigError."""
    return read(spec, arguments.config, env, flags_of(spec, arguments))


def flags_of(spec: type[Config], arguments: argparse.Namespace) -> dict[str, Any]:
    """The options that were given as flags, by their names."""
    return {o.name: getattr(arguments, o.name) for o in options_of(spec) if hasattr(arguments, o.name)}


async def serve(config: Config, file: ConfigFile | None = None) -> None:
    """The gateway of `config` until SIGINT or SIGTERM, then until running requests are done or the grace is over.

    file: the file of options, which is followed.
    """
    from router.gateway.tenants import check_doors
    from router.processes.supervisor import process_count, supervise

    most = descriptors.raise_limit()
    if most < SCANT_FILES:
        log.warning("only %d file descriptors may be open (ulimit -n): a request takes two", most)
    check_doors(config.server)
    if process_count(config) > 1:
        return await supervise(config, file)
    await _serve_alone(config, file)


async def _serve_alone(config: Config, file: ConfigFile | None) -> None:
    """The whole gateway in this process."""
    from router.engines.discovery import Discovery, engines_of
    from router.gateway.app import create_app, create_router
    from router.gateway.listeners import listen, serving, tls_changes, url_of
    from router.gateway.server import serve_app
    from router.gateway.server_tls import ServerTls

    engines = engines_of(config.engines.worker_urls)
    router = create_router(config)
    app = create_app(config, router, engines, discovery=partial(Discovery, config), config_file=file)
    tls, server = ServerTls.of(config.server), config.server
    async with AsyncExitStack() as stack:
        if tls is not None:
            await stack.enter_async_context(tls.running())
        if server.admin_port is not None:
            listeners = listen(server.admin_host, server.admin_port, "admin-port")
            await stack.enter_async_context(serving(config, app.admin, listeners, **tls_changes(tls)))
            log.info("operators' routes on %s", url_of(server, listeners[0]))
        scheme, policy = "http" if tls is None else "https", config.routing.policy
        log.info("gateway on %s://%s:%d, policy %s, %d engines", scheme, server.host, server.port, policy, len(engines))
        await serve_app(config, app, idle=lambda: router.in_flight == 0, **tls_changes(tls))


def run_up(config: UpConfig) -> int:
    from router.engines.up import up
    from router.gateway.access import Access
    from router.gateway.regular_file import check_regular
    from router.gateway.tenants import check_doors
    from router.tls import engine_context, server_context

    # All that can be wrong is said before engines start, which takes minutes.
    check_routes(config)
    check_doors(config.server)
    Access.of(config.server)
    engine_context(config.engines)
    if config.server.tls_cert is not None:
        server_context(config.server)
    recording = config.recording
    files = {"record": recording.record, "usage_log": recording.usage_log, "snapshot": recording.snapshot}
    for name, file in files.items():
        if file:
            check_regular(name, file)
        if file and not os.access(os.path.dirname(file) or ".", os.W_OK):
            raise ConfigError(name, file, "a file in a folder that can be written")
    uvloop.run(up(config, os.environ, serve))
    return 0


def run_serve(config: Config, file: ConfigFile | None = None) -> int:
    check_routes(config)
    uvloop.run(serve(config, file))
    return 0


def check_routes(config: Config) -> None:
    """Raises ConfigError for options of routes that cannot be, before anything is started."""
    from router.gateway.routes import OpenedPaths, read_aliases

    OpenedPaths(config.server.allow_paths)
    read_aliases(config.engines.model_alias)


def run_record(config: Config, file: ConfigFile | None = None) -> int:
    recording = dataclasses.replace(config.recording, record=config.recording.record or RECORD)
    return run_serve(dataclasses.replace(config, recording=recording), file)


def run_doctor(config: Config) -> int:
    from router.engines import doctor

    return asyncio.run(doctor.run(config))
