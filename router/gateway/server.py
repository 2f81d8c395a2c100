"""How uvicorn serves an application of the gateway, and how it ends."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
import time
from collections.abc import Callable, Collection, Coroutine, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, NoReturn

import uvicorn

from router.config import Config
from router.gateway import garbage
from router.gateway.beside import beside
from router.gateway.client import LAST_WORD_S
from router.gateway.client_connection import Connections
from router.gateway.client_limits import Limits
from router.gateway.front import App

log = logging.getLogger("leafcutter.gateway")
LOOK_S, STUCK_S = 2.0, 30.0
POLL_S = 0.05


def server_config(
    config: Config, app: Any, *, refused: Callable[[str], None] = lambda _: None, **changes: Any
) -> uvicorn.Config:
    """uvicorn's configuration of the endpoint that clients see. refused: gets the reason of each refusal of a client
    whose request does not reach the application. changes: settings of uvicorn that differ from it."""
    settings: dict[str, Any] = {
        "host": config.server.host,
        "port": config.server.port,
        "http": Connections(Limits(config.server.max_connections), refused),
        "ws": "none",
        "log_config": None,
        "access_log": False,
        "proxy_headers": False,
        "server_header": False,
        "timeout_keep_alive": round(config.server.keep_alive_timeout_secs),
    }
    return uvicorn.Config(app, **{**settings, **changes})


async def serve_app(config: Config, app: App, *, idle: Callable[[], bool], **changes: Any) -> None:
    """Serve an application until SIGINT or SIGTERM, and then end it in order. idle: returns whether it has no request
    on its way. changes: as `server_config` takes them."""
    server = ClientServer(config, app, **changes)
    with tended(idle), beside(cut_off_stuck(server.server_state.connections)), _signals(server) as heard:

        def cancelled() -> None:
            if not heard:  # else it is `leafcutter up` that has heard the signal too
                server.stop()

        await to_the_end(server.serve(), cancelled)


@contextmanager
def _signals(server: ClientServer) -> Iterator[list[int]]:
    """The first signal ends the server, SIGTERM after a pause. A second one waits for nothing. Gives those heard."""
    loop = asyncio.get_running_loop()
    heard: list[int] = []

    def handle(number: int, _: object) -> None:
        first = server.pause_and_stop if number == signal.SIGTERM else server.stop
        loop.call_soon_threadsafe(server.hurry if heard else first)
        heard.append(number)

    before = {each: signal.signal(each, handle) for each in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield heard
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


async def to_the_end(work: Coroutine[Any, Any, None], cancelled: Callable[[], None] = lambda: None) -> None:
    """Do the work to its end, even if this task is cancelled meanwhile: then the cancellation comes afterwards.

    `leafcutter up` hears the signals too, and cancels the gateway while it shuts down in order. cancelled: called when
    that happens.
    """
    task, was_cancelled = asyncio.create_task(work), False
    while not task.done():
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError:
            was_cancelled = True
            cancelled()
    task.result()
    if was_cancelled:
        raise asyncio.CancelledError


def tended(idle: Callable[[], bool]) -> AbstractContextManager[None]:
    """Keep the garbage collector of this process from pausing it. idle: as `garbage.tend` takes it."""
    return beside(garbage.tend(idle))


async def cut_off_stuck(connections: Collection[Any]) -> NoReturn:
    """Cut off clients that take none of their last bytes for STUCK_S seconds.

    A connection that is being closed waits until the client has taken everything, and uvicorn sets it no limit. So a
    client that never reads would keep its connection and what is buffered for it. connections: uvicorn's protocols.
    """
    stuck: dict[Any, tuple[int, float]] = {}  # by protocol: bytes that wait, and since when there are so many
    while True:
        await asyncio.sleep(LOOK_S)
        now_s, closing = time.monotonic(), {}
        for each in list(connections):
            if each.transport.is_closing():
                size = each.transport.get_write_buffer_size()
                before, since_s = stuck.get(each, (-1, now_s))
                closing[each] = size, since_s if size == before else now_s
                if now_s - closing[each][1] >= STUCK_S:
                    each.transport.abort()
        stuck = closing


class QuietServer(uvicorn.Server):
    """uvicorn in a process that gets no signals, because another one tells it when to stop (`should_exit`)."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.listening = asyncio.Event()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.listening.set()


class ClientServer(QuietServer):
    """The server of the endpoint that clients see."""

    def __init__(self, config: Config, app: App, *, wrapped: Any = None, **changes: Any) -> None:
        super().__init__(server_config(config, wrapped or app, refused=app.refused, **changes))
        self._application = app
        self._pause_s = config.server.shutdown_pause_secs
        self._grace_s = config.server.shutdown_grace_period_secs
        self._hurried = asyncio.Event()

    def leave(self) -> None:
        """The end is near: /readiness says so, and everything else goes on."""
        self._application.leaving = True

    def pause_and_stop(self) -> None:
        """Stop after a pause, in which load balancers notice that the gateway is not ready."""
        self.leave()
        log.info("not ready from now on, and ending in %g s; a second signal ends at once", self._pause_s)
        asyncio.get_running_loop().call_later(self._pause_s, self.stop)

    def stop(self) -> None:
        """Take no new connections, close the idle ones, and give running requests the grace to finish."""
        self.should_exit = True

    def hurry(self) -> None:
        """Stop, and wait for no running request."""
        self.stop()
        self._hurried.set()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """uvicorn's, but that requests which are cut are told so, and have the time to tell their clients."""
        for server in self.servers:
            server.close()
        for listener in sockets or ():
            listener.close()
        state = self.server_state
        for connection in list(state.connections):
            connection.shutdown()
        hurried = asyncio.create_task(self._hurried.wait())
        finished = asyncio.create_task(self._finished())
        await asyncio.wait((finished, hurried), timeout=self._grace_s, return_when=asyncio.FIRST_COMPLETED)
        hurried.cancel()
        if not finished.done():
            log.warning("cutting %d requests that still run", len(state.tasks))
            for task in list(state.tasks):
                task.cancel()
            await asyncio.wait((finished,), timeout=2 * LAST_WORD_S)
            finished.cancel()
            for connection in list(state.connections):
                connection.transport.abort()
        await self.lifespan.shutdown()

    async def _finished(self) -> None:
        while self.server_state.connections or self.server_state.tasks:  # noqa: ASYNC110 - uvicorn has no event for it
            await asyncio.sleep(POLL_S)
