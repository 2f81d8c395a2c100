"""The supervisor: it listens, starts the router process and the edges, and starts again whatever dies.

It takes no part in any request. Signals are for it alone: SIGTERM and SIGINT end all processes in order, the edges
first; SIGHUP replaces the edges one by one, and lets the file of options be read again. If it is killed outright, its
processes notice and end.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import tempfile
import time
from collections.abc import Coroutine, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from types import MappingProxyType
from typing import Any, NoReturn

from router.config import Config
from router.engines.discovery import engines_of
from router.errors import SetupError
from router.gateway.access import Access
from router.gateway.config_file import ConfigFile
from router.gateway.key_file import encode
from router.gateway.key_limits import LANES, SharedLimits
from router.gateway.listeners import listen, url_of
from router.gateway.server import to_the_end
from router.gateway.server_tls import ServerTls
from router.gateway.usage_log import UsageLog
from router.processes.acceptor import ConnectionCounts
from router.processes.child import Child
from router.processes.control import GO, HURRY, LEAVE, RELOAD, RESTARTS, RETIRE, ROUTER, STOP, Orders, first_of
from router.tls import engine_context

log = logging.getLogger("leafcutter.processes")
MOST_AUTO = 8  # `auto` starts at most so many edges
START_S = 60.0  # a process that does not serve after so long is given up
SETTLED_S = 10.0  # one that has lived for so long is started again at once when it dies
PAUSES_S = (0.0, 0.2, 1.0, 5.0)  # else the pause before the next start grows, to the last of these
HURRY_S = 3.0  # an edge that cuts its requests has so long to tell their clients
LAST_S = 10.0  # beyond the grace, so long may an edge take to end, and the router process with its last snapshot
METRICS_ENV = "PROMETHEUS_MULTIPROC_DIR"  # prometheus_client reads it while it is imported


def process_count(config: Config) -> int:
    """The number of edges that the options ask for. 1: there are no other processes."""
    if isinstance(config.server.processes, int):
        return config.server.processes
    return min(MOST_AUTO, len(os.sched_getaffinity(0)))


async def supervise(config: Config, file: ConfigFile | None = None) -> None:
    """Serve with several processes until SIGINT or SIGTERM. file: the file of options, which is followed.

    Raises SetupError if the port is taken or a process does not start, and ConfigError for engines that cannot be.
    """
    engines = engines_of(config.engines.worker_urls)
    with ExitStack() as stack:
        listeners = [stack.enter_context(listener) for listener in listen(config.server.host, config.server.port)]
        # What is wrong with these files is said before anything is started.
        ServerTls.of(config.server)
        engine_context(config.engines)
        if usage_log := UsageLog.of(config.recording, time.time):
            usage_log.close()
        operators: list[socket.socket] = []
        if config.server.admin_port is not None:
            found = listen(config.server.admin_host, config.server.admin_port, "admin-port")
            operators += [stack.enter_context(listener) for listener in found]
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="leafcutter-", ignore_cleanup_errors=True))
        edges = process_count(config)
        orders = Orders("", config, engines, folder, file, edges=edges)
        os.mkdir(orders.metrics)
        ConnectionCounts.create(orders.connections, edges)
        SharedLimits.create(orders.limits)
        access = Access.of(config.server)
        keep_keys(access, orders.keys)
        async with access.running(lambda: keep_keys(access, orders.keys)):
            await Supervisor(orders, edges, listeners, operators).run()


def keep_keys(access: Access, path: str) -> None:
    """Write the clients' keys where the other processes read them: one that is started while the file of the operator
    is bad has those that were good last."""
    with open(f"{path}.part", "wb") as file:
        file.write(encode(access.entries))
    os.replace(f"{path}.part", path)


class Supervisor:
    """orders: those of all processes, without a name. listeners: the sockets on which clients connect. operators: those
    on which operators do, if they have some of their own."""

    def __init__(
        self, orders: Orders, edges: int, listeners: Sequence[socket.socket], operators: Sequence[socket.socket] = ()
    ) -> None:
        self._operators = operators
        self._limits = SharedLimits(time.monotonic, orders.limits)
        self._lanes: dict[Child, int] = {}
        """The lane of each edge that has not ended."""
        self._orders, self._listeners, self._slots = orders, listeners, range(edges)
        self._stop, self._hurry, self._replace = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self._running: set[Child] = set()
        """Every process that has been started and has not ended."""
        self._edges: dict[int, Child] = {}
        """The present edge of each slot. Edges that were replaced are in `_running` alone until they have ended."""
        self._routers: list[Child] = []
        """The router process that decides, and the one that is to take its place."""
        self._counts = ConnectionCounts(orders.connections)
        self._restarts = {"edge": 0, "router": 0}
        self._short_lives: dict[str, int] = {}
        """How often in a row processes of that name have died soon after their start."""
        self._tasks: set[asyncio.Task[None]] = set()
        self._serves = self._stopping = self._leaving = False
        self._serve_on_s = 0.0
        """How long the gateway serves on after the first signal to stop."""

    async def run(self) -> None:
        """Start everything, keep it running until a signal says to stop, and stop everything. Raises SetupError."""
        with self._signals():
            try:
                starting = asyncio.create_task(self._start_all())
                await first_of(asyncio.shield(starting), self._stop.wait())
                if self._stop.is_set():
                    starting.cancel()
                else:
                    starting.result()
                    self._serves = True
                    await self._stop.wait()
            finally:
                await to_the_end(self._stop_all())

    @contextmanager
    def _signals(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()

        def handle(number: int, _: object) -> None:
            event = self._replace if number == signal.SIGHUP else self._hurry if self._stopping else self._stop
            if event is self._stop:
                self._stopping = True
                if number == signal.SIGTERM:
                    self._serve_on_s = self._orders.config.server.shutdown_pause_secs
            loop.call_soon_threadsafe(event.set)

        before = {each: signal.signal(each, handle) for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # --- starting -----------------------------------------------------------------------------------------------

    async def _start_all(self) -> None:
        self._routers.append(await self._start_router())
        self._routers[0].tell(GO)
        self._edges = {slot: await self._start_edge(slot) for slot in self._slots}
        for child in (*self._routers, *self._edges.values()):
            if not await child.serves(START_S):
                raise SetupError(f"the process {child.name} did not start; what it logged above says why")
        self._say_where()
        for slot, edge in self._edges.items():
            self._spawn(self._keep_edge(slot, edge))
        self._routers.append(await self._start_router())  # it comes last, so that it does not slow the others down
        self._spawn(self._keep_routers())
        self._spawn(self._replace_when_told())

    def _say_where(self) -> None:
        config = self._orders.config
        place, policy = url_of(config.server, self._listeners[0]), config.routing.policy
        counts = len(self._orders.engines), len(self._slots)
        log.info("gateway on %s, policy %s, %d engines, %d processes", place, policy, *counts)
        for listener in self._operators[:1]:
            log.info("operators' routes on %s", url_of(config.server, listener))

    async def _start_edge(self, slot: int) -> Child:
        listeners = tuple(listener.fileno() for listener in self._listeners)
        lane = min(set(range(LANES)) - set(self._lanes.values()), default=LANES - 1)
        env, name = {METRICS_ENV: self._orders.metrics}, f"edge-{slot}"
        child = await self._start(name, env, slot=slot, listeners=listeners, lane=lane)
        self._lanes[child] = lane
        child.ended.add_done_callback(lambda _: self._forget_lane(child))
        if self._leaving:
            child.tell(LEAVE)
        return child

    def _forget_lane(self, child: Child) -> None:
        lane = self._lanes.pop(child)
        if lane not in self._lanes.values():
            self._limits.clear(lane)

    async def _start_router(self) -> Child:
        return await self._start(ROUTER, listeners=tuple(listener.fileno() for listener in self._operators))

    async def _start(self, name: str, env: Mapping[str, str] = MappingProxyType({}), **orders: Any) -> Child:
        """Start a process. env: variables besides those of this one. orders: the fields of its orders that differ."""
        inherited = {name: value for name, value in os.environ.items() if name != METRICS_ENV}
        child = await Child.start(replace(self._orders, name=name, **orders), {**inherited, **env})
        log.debug("%s is process %d", name, child.pid)
        self._running.add(child)
        child.ended.add_done_callback(lambda _: self._running.discard(child))
        return child

    # --- starting again what dies -------------------------------------------------------------------------------

    async def _keep_edge(self, slot: int, edge: Child) -> None:
        """Start another edge when this one has died, unless it was replaced."""
        await asyncio.shield(edge.ended)
        if self._edges[slot] is edge:
            self._counts.absent(slot)
            await asyncio.sleep(self._pause_s(edge))
        if self._edges[slot] is edge:
            self._edges[slot] = fresh = await self._start_edge(slot)
            self._count("edge")
            self._spawn(self._keep_edge(slot, fresh))

    async def _keep_routers(self) -> NoReturn:
        """Let the standby take the place of a router process that has died, and start another standby."""
        while True:
            deciding, standby = self._routers
            await first_of(asyncio.shield(deciding.ended), asyncio.shield(standby.ended))
            if deciding.ended.done():
                await asyncio.sleep(self._pause_s(deciding))
                standby.tell(GO)
                deciding = standby
                self._routers[0] = standby
                self._count("router")
            else:
                await first_of(asyncio.sleep(self._pause_s(standby)), asyncio.shield(deciding.ended))
            self._routers = [deciding, await self._start_router()]

    def _pause_s(self, child: Child) -> float:
        """A process has died: log it, and return how long its restart shall wait."""
        short = self._short_lives.get(child.name, 0) if child.age_s < SETTLED_S else 0
        self._short_lives[child.name] = short + 1
        status = child.ended.result()
        log.error("%s (process %d) has ended with status %d: starting another", child.name, child.pid, status)
        return PAUSES_S[min(short, len(PAUSES_S) - 1)]

    def _count(self, kind: str) -> None:
        self._restarts[kind] += 1
        self._routers[0].tell(RESTARTS, *self._restarts.values())

    async def _replace_when_told(self) -> NoReturn:
        while True:
            await self._replace.wait()
            self._replace.clear()
            self._routers[0].tell(RELOAD)
            log.info("replacing the edges")
            if all([await self._replace_edge(slot) for slot in self._slots]):
                log.info("all edges are replaced")

    async def _replace_edge(self, slot: int) -> bool:
        """Start a new edge and retire the present one. Return False if the new one does not start; the other stays."""
        fresh = await self._start_edge(slot)
        if not await fresh.serves(START_S):
            log.error("the new %s did not start: the present one stays", fresh.name)
            fresh.kill()
            return False
        old, self._edges[slot] = self._edges[slot], fresh
        self._spawn(self._keep_edge(slot, fresh))
        old.tell(RETIRE)
        return True

    # --- stopping -----------------------------------------------------------------------------------------------

    async def _serve_on(self) -> None:
        """Serve for the pause in which load balancers notice that the gateway is about to end."""
        log.info("not ready from now on, and ending in %g s; a second signal ends at once", self._serve_on_s)
        self._leaving = True
        for edge in self._running_edges():
            edge.tell(LEAVE)
        await first_of(asyncio.sleep(self._serve_on_s), self._hurry.wait())

    def _running_edges(self) -> list[Child]:
        return [child for child in self._running if child.name != ROUTER]

    async def _stop_all(self) -> None:
        if self._serves and self._serve_on_s:
            await self._serve_on()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for listener in (*self._listeners, *self._operators):
            listener.close()  # or the kernel would go on taking connections that nobody serves
        for standby in self._routers[1:]:
            standby.kill()
        grace_s = self._orders.config.server.shutdown_grace_period_secs
        await self._end(self._running_edges(), grace_s + LAST_S)
        await self._end([child for child in self._running if child.name == ROUTER], LAST_S)

    async def _end(self, children: Sequence[Child], limit_s: float) -> None:
        """Tell the processes to stop, to hurry at a second signal, and kill those that have not ended in time."""
        for child in children:
            child.tell(STOP)
        ended = asyncio.gather(*(asyncio.shield(child.ended) for child in children))
        await first_of(asyncio.shield(ended), self._hurry.wait(), asyncio.sleep(limit_s))
        if self._hurry.is_set():
            for child in children:
                child.tell(HURRY)
            await first_of(asyncio.shield(ended), asyncio.sleep(HURRY_S))
        for child in children:
            if not child.ended.done():
                log.warning("killing %s (process %d)", child.name, child.pid)
                child.kill()
        await ended
