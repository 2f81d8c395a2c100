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
from collections.abc import Coroutine, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from types import MappingProxyType
from typing import Any, NoReturn

from router.config import Config
from router.engines.discovery import engines_of
from router.errors import SetupError
from router.gateway.config_file import ConfigFile
from router.processes.acceptor import ConnectionCounts
from router.processes.child import Child
from router.processes.control import GO, RELOAD, RESTARTS, RETIRE, STOP, Orders, first_of

log = logging.getLogger("leafcutter.processes")
MOST_AUTO = 8  # `auto` starts at most so many edges
BACKLOG = 2048
START_S = 60.0  # a process that does not serve after so long is given up
SETTLED_S = 10.0  # one that has lived for so long is started again at once when it dies
PAUSES_S = (0.0, 0.2, 1.0, 5.0)  # else the pause before the next start grows, to the last of these
LAST_S = 10.0  # beyond the grace, so long may an edge take to end, and the router process with its last snapshot
METRICS_ENV = "PROMETHEUS_MULTIPROC_DIR"  # prometheus_client reads it while it is imported
ROUTER = "router"


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
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="leafcutter-", ignore_cleanup_errors=True))
        orders = Orders("", config, engines, folder, file)
        edges = process_count(config)
        os.mkdir(orders.metrics)
        ConnectionCounts.create(orders.connections, edges)
        await Supervisor(orders, edges, listeners).run()


def listen(host: str, port: int) -> list[socket.socket]:
    """A listening socket for every address of `host`. Raises SetupError."""
    sockets: list[socket.socket] = []
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        for family, kind, protocol, _, address in dict.fromkeys(found):
            sockets.append(sock := socket.socket(family, kind, protocol))
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            sock.bind(address)
            sock.listen(BACKLOG)
    except OSError as error:
        for sock in sockets:
            sock.close()
        raise SetupError(f"cannot listen on {host}:{port} ({error.strerror}): choose with --port") from None
    return sockets


class Supervisor:
    """orders: those of all processes, without a name. listeners: the sockets on which clients connect."""

    def __init__(self, orders: Orders, edges: int, listeners: Sequence[socket.socket]) -> None:
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
                    await self._stop.wait()
            finally:
                await to_the_end(self._stop_all())

    @contextmanager
    def _signals(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()

        def handle(number: int, _: object) -> None:
            event = self._replace if number == signal.SIGHUP else self._hurry if self._stop.is_set() else self._stop
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
        self._routers.append(await self._start(ROUTER))
        self._routers[0].tell(GO)
        self._edges = {slot: await self._start_edge(slot) for slot in self._slots}
        for child in (*self._routers, *self._edges.values()):
            if not await child.serves(START_S):
                raise SetupError(f"the process {child.name} did not start; what it logged above says why")
        self._say_where()
        for slot, edge in self._edges.items():
            self._spawn(self._keep_edge(slot, edge))
        self._routers.append(await self._start(ROUTER))  # it comes last, so that it does not slow the others down
        self._spawn(self._keep_routers())
        self._spawn(self._replace_when_told())

    def _say_where(self) -> None:
        host, port = self._listeners[0].getsockname()[:2]
        place, policy = f"[{host}]:{port}" if ":" in host else f"{host}:{port}", self._orders.config.routing.policy
        counts = len(self._orders.engines), len(self._slots)
        log.info("gateway on http://%s, policy %s, %d engines, %d processes", place, policy, *counts)

    async def _start_edge(self, slot: int) -> Child:
        listeners = tuple(listener.fileno() for listener in self._listeners)
        return await self._start(f"edge-{slot}", {METRICS_ENV: self._orders.metrics}, slot=slot, listeners=listeners)

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
            self._routers = [deciding, await self._start(ROUTER)]

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

    async def _stop_all(self) -> None:
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for listener in self._listeners:
            listener.close()  # or the kernel would go on taking connections that nobody serves
        for standby in self._routers[1:]:
            standby.kill()
        grace_s = self._orders.config.server.shutdown_grace_period_secs
        await self._end([child for child in self._running if child.name != ROUTER], grace_s + LAST_S)
        await self._end([child for child in self._running if child.name == ROUTER], LAST_S)

    async def _end(self, children: Sequence[Child], limit_s: float) -> None:
        """Tell the processes to stop, and kill those that have not ended after the limit or at a second signal."""
        for child in children:
            child.tell(STOP)
        ended = asyncio.gather(*(asyncio.shield(child.ended) for child in children))
        await first_of(asyncio.shield(ended), self._hurry.wait(), asyncio.sleep(limit_s))
        for child in children:
            if not child.ended.done():
                log.warning("killing %s (process %d)", child.name, child.pid)
                child.kill()
        await ended


async def to_the_end(work: Coroutine[Any, Any, None]) -> None:
    """Do the work to its end, even if this task is cancelled meanwhile: then the cancellation comes afterwards.

    `leafcutter up` hears the signals too, and cancels the gateway while it shuts down in order.
    """
    task, cancelled = asyncio.create_task(work), False
    while not task.done():
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError:
            cancelled = True
    task.result()
    if cancelled:
        raise asyncio.CancelledError
