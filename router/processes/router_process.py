"""The router process: it owns `core.Router` and decides for all edges, and watches, learns, saves and records.

There are two of them. One decides. The other has imported everything and waits for the word GO, which it gets when the
first one has died: so another one decides within a fraction of a second.
"""

from __future__ import annotations

import asyncio
import shutil
import socket
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, NoReturn

from prometheus_client import CollectorRegistry

from router.core.workers import Workers
from router.engines.discovery import Discovery
from router.gateway.access import Access
from router.gateway.app import create_router, create_trace_writer
from router.gateway.body_reader import BodyReader
from router.gateway.config_file import following
from router.gateway.front import AdminApp, Application
from router.gateway.listeners import serving, tls_changes
from router.gateway.metrics import RouterCollector
from router.gateway.rest import create_rest
from router.gateway.server import QuietServer, server_config, tended
from router.gateway.server_tls import ServerTls
from router.gateway.snapshot import Snapshot
from router.processes import assignment, kept_workers
from router.processes.control import GO, HURRY, RELOAD, RESTARTS, STOP, Control, Orders, first_of
from router.processes.decision_server import DecisionServer
from router.processes.shared_metrics import EdgesCollector, SharedMetrics

CRASH_INTERVAL_S = 5.0  # without --snapshot, what was learned is saved so often for the next router process


async def run(control: Control) -> None:
    """Wait for GO, and then decide until the supervisor says STOP."""
    going, stopping, reloading = asyncio.Event(), asyncio.Event(), asyncio.Event()
    restarts = {"edge": 0, "router": 0}

    def count(words: list[str]) -> None:
        restarts.update(zip(restarts, map(int, words), strict=True))

    verbs = {
        GO: lambda _: going.set(),
        STOP: lambda _: stopping.set(),
        HURRY: lambda _: None,
        RELOAD: lambda _: reloading.set(),
        RESTARTS: count,
    }
    listening = asyncio.create_task(control.listen(verbs))
    await first_of(going.wait(), stopping.wait())
    if not stopping.is_set():
        async with deciding(control.orders, restarts, reloading):
            control.say_ready()
            await stopping.wait()
    listening.cancel()
    if control.orphaned:  # nobody else removes it
        shutil.rmtree(control.orders.folder, ignore_errors=True)


@asynccontextmanager
async def deciding(orders: Orders, restarts: dict[str, int], reloading: asyncio.Event) -> AsyncIterator[None]:
    """Everything that the router process does. restarts: how often processes have died, by their kind. reloading: set
    when the file of options shall be read again."""
    config, clock, wall_clock = orders.config, time.monotonic, time.time
    router = create_router(config)
    workers = Workers(router, orders.engines)
    addresses = workers.addresses
    kept_workers.keep(workers, f"{orders.folder}/workers.json")
    kept_policies = f"{orders.folder}/policies.json"
    assignment.restore(router, kept_policies)
    path, interval_s = config.recording.snapshot, config.recording.snapshot_interval_secs
    if path is None:
        path, interval_s = f"{orders.folder}/learned.json", min(interval_s, CRASH_INTERVAL_S)
    snapshot = Snapshot(path, router.learned, addresses, clock=clock, wall_clock=wall_clock)
    snapshot.start()

    registry = CollectorRegistry()
    registry.register(RouterCollector(router.status))
    registry.register(SharedMetrics(orders.metrics))
    recording = create_trace_writer(config, registry)
    server = DecisionServer(router, addresses, clock, recording)
    workers.listeners.append(server.tell_fleet)
    registry.register(EdgesCollector(lambda: len(server.edges), lambda: restarts))
    body_reader = BodyReader()
    rest = create_rest(config, router, workers, registry, body_reader, clock=clock, wall_clock=wall_clock)
    async with AsyncExitStack() as stack:
        if recording is not None:
            stack.enter_context(recording.running())
        await stack.enter_async_context(snapshot.running(interval_s))
        await stack.enter_async_context(body_reader.running())
        stack.enter_context(tended(lambda: router.in_flight == 0))
        await stack.enter_async_context(_task(assignment.keep(router, kept_policies)))
        await stack.enter_async_context(Discovery(config, workers).running())
        rest_server = QuietServer(server_config(config, rest, http="httptools", lifespan="off", uds=orders.rest))
        await stack.enter_async_context(_task(rest_server.serve()))
        await rest_server.listening.wait()
        await stack.enter_async_context(server.running(orders.decisions))
        await stack.enter_async_context(_admin_listener(orders, rest))
        if orders.file is not None:
            reload = stack.enter_context(following(orders.file, workers.relist, signals=False))
            await stack.enter_async_context(_task(_whenever(reloading, reload)))
        yield


@asynccontextmanager
async def _admin_listener(orders: Orders, rest: Application) -> AsyncIterator[None]:
    """Serve operators on the sockets that the supervisor has opened for them, if there are any."""
    async with AsyncExitStack() as stack:
        if orders.listeners:
            config = orders.config
            access, tls = Access.of_copy(config.server, orders.keys), ServerTls.of(config.server)
            await stack.enter_async_context(access.running())
            if tls is not None:
                await stack.enter_async_context(tls.running())
            app = AdminApp(config, rest, access)
            sockets = [socket.socket(fileno=descriptor) for descriptor in orders.listeners]
            await stack.enter_async_context(serving(config, app, sockets, **tls_changes(tls)))
        yield


async def _whenever(event: asyncio.Event, call: Callable[[], None]) -> NoReturn:
    while True:
        await event.wait()
        event.clear()
        call()


@asynccontextmanager
async def _task(work: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """Run `work` beside the context."""
    task = asyncio.create_task(work)
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
