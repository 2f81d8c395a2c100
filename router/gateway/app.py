"""The gateway as one ASGI application with the router in the same process; this file only wires it together."""

from __future__ import annotations

import random
import secrets
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from typing import Protocol

from fastapi import FastAPI
from prometheus_client import CollectorRegistry

from router.config import Config
from router.core.router import Router
from router.core.workers import Workers
from router.gateway.access import Access
from router.gateway.beside import beside
from router.gateway.body_reader import BodyReader
from router.gateway.config_file import ConfigFile, following
from router.gateway.decider import LocalDecider
from router.gateway.front import App
from router.gateway.handler import Gateway
from router.gateway.metrics import Metrics, RouterCollector, TraceCollector
from router.gateway.rest import create_rest
from router.gateway.signs_of_life import tell_signs_of_life
from router.gateway.snapshot import Snapshot
from router.gateway.trace_writer import TraceWriter
from router.gateway.upstream import Upstream
from router.gateway.usage_log import UsageLog
from router.types import EngineId


class HealthWatch(Protocol):
    """Keeps the health of the fleet up to date while the application runs, as `engines.discovery.Discovery` does."""

    def running(self) -> AbstractAsyncContextManager[None]: ...


def create_app(
    config: Config,
    router: Router,
    engines: Mapping[EngineId, str],
    *,
    discovery: Callable[[Workers], HealthWatch] | None = None,
    config_file: ConfigFile | None = None,
    registry: CollectorRegistry | None = None,
    upstream: Upstream | None = None,
    clock: Callable[[], float] = time.monotonic,
    wall_clock: Callable[[], float] = time.time,
    new_id: Callable[[], str] = lambda: secrets.token_hex(16),
) -> App:
    """Make the application of `router` over `engines` (id -> base URL), which it adds to the router's fleet.

    discovery: makes the watch over the engines, which runs as long as the application; without it the caller has to say
    which engines are healthy. config_file: the file that the options come from, which is followed. registry:
    takes the metrics; None: a new one does. clock: monotonic, seconds. wall_clock: Unix time, seconds. new_id: makes
    the id of a request whose client sent none.

    Raises ConfigError if the file of the recording, the usage log or the snapshot cannot be written, or that of
    clients' keys or of a certificate not be read.
    """
    registry = registry or CollectorRegistry()
    access, usage_log = Access.of(config.server), UsageLog.of(config.recording, wall_clock)
    upstream, body_reader = upstream or Upstream(config), BodyReader()
    workers, metrics = Workers(router, engines), Metrics(registry)
    addresses = workers.addresses

    def follow() -> None:
        upstream.keep_only(addresses.values())
        metrics.keep_only(addresses)

    workers.listeners.append(follow)
    registry.register(RouterCollector(router.status))
    trace_writer = create_trace_writer(config, registry)
    snapshot = None
    if config.recording.snapshot is not None:
        snapshot = Snapshot(config.recording.snapshot, router.learned, addresses, clock=clock, wall_clock=wall_clock)
        snapshot.start()
    decider = LocalDecider(router, clock)
    router.on_out = lambda engine: upstream.give_up(addresses[engine])
    gateway = Gateway(
        config,
        decider,
        addresses,
        upstream,
        body_reader,
        metrics,
        trace_writer=trace_writer,
        usage_log=usage_log,
        clock=clock,
        new_id=new_id,
    )

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(access.running())
            if usage_log is not None:
                stack.enter_context(usage_log.running())
            if trace_writer is not None:
                stack.enter_context(trace_writer.running())
            if snapshot is not None:
                await stack.enter_async_context(snapshot.running(config.recording.snapshot_interval_secs))
            await stack.enter_async_context(upstream.running())
            await stack.enter_async_context(body_reader.running())
            stack.enter_context(beside(tell_signs_of_life(upstream, decider, addresses)))
            if discovery is not None:
                await stack.enter_async_context(discovery(workers).running())
            if config_file is not None:
                stack.enter_context(following(config_file, workers.relist))
            yield

    rest = create_rest(
        config, router, workers, registry, body_reader, clock=clock, wall_clock=wall_clock, lifespan=lifespan
    )
    return App(config, gateway, rest, access)


def create_router(config: Config) -> Router:
    """The router that the options ask for, without engines. Its sessions have ids that no other router gives."""
    rng, prefix = random.Random(config.routing.seed), f"lc-{secrets.token_hex(4)}-"
    return Router(config.routing, config.policies, rng=rng, session_prefix=prefix, timer=time.perf_counter)


def create_trace_writer(config: Config, registry: CollectorRegistry) -> TraceWriter | None:
    """The recording that the options ask for, counted in `registry`. Raises ConfigError if it cannot be written."""
    options = config.recording
    if options.record is None:
        return None
    salt = secrets.token_bytes(32)
    writer = TraceWriter(options.record, max_bytes=options.record_max_bytes, files=options.record_files, salt=salt)
    registry.register(TraceCollector(lambda: writer.counts))
    return writer
