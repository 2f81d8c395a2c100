"""`leafcutter up`: start the engines, wait until they answer, run the gateway in front of them, stop all at the end."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import os
import secrets
import shutil
import signal
import socket
import subprocess
from collections.abc import Awaitable, Callable, Mapping, Sequence

from router.config import Config, UpConfig
from router.engines import demo_model as model
from router.engines.launch import Engine, Launch, plan
from router.errors import SetupError

log = logging.getLogger("leafcutter.up")
GPU_MODEL = "Qwen/Qwen2.5-1.5B-Instruct"  # It is open, and small enough for any GPU that runs vLLM.
RESTART_S = (2.0, 60.0)  # The first and the longest pause before an engine that died is started again.

Serve = Callable[[Config], Awaitable[None]]
"""Runs the gateway until it is told to stop."""


def count_gpus() -> int:
    """Return how many NVIDIA GPUs nvidia-smi lists, 0 without it. CUDA_VISIBLE_DEVICES is left to the engines."""
    if shutil.which("nvidia-smi") is None:
        return 0
    listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False)
    return sum(line.startswith("GPU ") for line in listed.stdout.splitlines())


def gpus_of(config: UpConfig) -> int:
    """Return how many GPUs to use. Raises SetupError if GPUs are asked for and there are none."""
    gpus = 0 if config.up.hardware == "cpu" else count_gpus()
    if config.up.hardware == "cuda" and not gpus:
        raise SetupError("hardware cuda was asked for, but nvidia-smi lists no GPU")
    return gpus


async def up(config: UpConfig, env: Mapping[str, str], serve: Serve) -> None:
    """Start what `config` and the machine call for, and run it until SIGINT or SIGTERM.

    Raises SetupError if the model or a port cannot be had, or an engine does not start.
    """
    if config.engines.hint_key is None and config.up.eviction != "off":  # nobody else has to know it
        keyed = dataclasses.replace(config.engines, hint_key=secrets.token_hex(16))
        config = dataclasses.replace(config, engines=keyed)
    gpus = gpus_of(config)
    served = config.up.model or (GPU_MODEL if gpus else str(model.ensure(env)))
    launches = plan(config, served, gpus, sorted(os.sched_getaffinity(0)))
    check_ports(config, launches)
    log.info("starting %d engines of %s, eviction order %s", len(launches), served, config.up.eviction)
    await run(config, launches, serve)


async def run(config: UpConfig, launches: Sequence[Launch], serve: Serve) -> None:
    """Run the engines of `launches` and, once they answer, the gateway by calling `serve`.

    Whatever was started is stopped again, however this ends. Raises SetupError if an engine does not start.
    """
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    engines: list[Engine] = []
    keepers: list[asyncio.Task[None]] = []
    try:
        if not await _run_unless(stop, start_all(launches, engines, config.up.engine_startup_timeout_secs)):
            return
        keepers += [asyncio.create_task(_keep_running(engine, engines, config)) for engine in engines]
        # Until the gateway's server handles the signals itself, a Ctrl-C sets `stop`.
        urls = tuple(launch.url for launch in launches)
        engines_at = dataclasses.replace(config.engines, worker_urls=urls)
        await _run_unless(stop, serve(dataclasses.replace(config, engines=engines_at)))
    finally:
        for keeper in keepers:
            keeper.cancel()
        await asyncio.gather(*keepers, return_exceptions=True)
        log.info("stopping %d engines", len(engines))
        await asyncio.gather(*(engine.stop() for engine in engines))


def check_ports(config: UpConfig, launches: Sequence[Launch]) -> None:
    """Raise SetupError, which names the first port that something else holds: better now than after a model load."""
    wanted = [(config.server.host, config.server.port, "--port")]
    if config.server.admin_port is not None:
        wanted.append((config.server.admin_host, config.server.admin_port, "--admin-port"))
    for launch in launches:
        wanted.append(("127.0.0.1", launch.port, "--engine-port"))
        wanted.append(("127.0.0.1", launch.port + config.engines.state_port_offset, "--state-port-offset"))
    for host, port, flag in wanted:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, port))
            except OSError as error:
                raise SetupError(f"cannot listen on {host}:{port} ({error.strerror}): choose with {flag}") from None


async def start_all(launches: Sequence[Launch], engines: list[Engine], timeout_s: float) -> None:
    """Start every launch, side by side except where one shares a GPU, and wait until all are ready.

    Each engine is appended to `engines` as soon as its process runs, so that the caller can stop it.
    """
    waiting: list[asyncio.Task[None]] = []
    try:
        for launch in launches:
            if launch.alone:
                await asyncio.gather(*waiting)
            engine = await Engine.start(launch)
            engines.append(engine)
            waiting.append(asyncio.create_task(engine.ready(timeout_s)))
        await asyncio.gather(*waiting)
    finally:
        for task in waiting:
            task.cancel()


async def _run_unless(stop: asyncio.Event, work: Awaitable[None]) -> bool:
    """Run `work` to its end, or cancel it when `stop` is set first. Return True if `stop` was not set."""
    task, stopped = asyncio.ensure_future(work), asyncio.ensure_future(stop.wait())
    await asyncio.wait((task, stopped), return_when=asyncio.FIRST_COMPLETED)
    stopped.cancel()
    if task.done():
        task.result()
        return not stop.is_set()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    return False


async def _keep_running(engine: Engine, engines: list[Engine], config: UpConfig) -> None:
    """Start an engine again whenever it dies; the gateway sends requests to the others meanwhile."""
    pause_s, longest_s = RESTART_S
    while True:
        status = await engine.process.wait()
        await engine.stop()  # Its workers may live on.
        log.error("%s ended with status %s (%s)", engine.launch.name, status, engine.launch.log_file)
        if not config.up.restart_engines:
            return
        await asyncio.sleep(pause_s)
        again = await Engine.start(engine.launch)
        engines[engines.index(engine)] = again
        engine = again
        try:
            await engine.ready(config.up.engine_startup_timeout_secs)
            pause_s = RESTART_S[0]
        except SetupError as error:
            log.error("%s", error)
            pause_s = min(2 * pause_s, longest_s)
