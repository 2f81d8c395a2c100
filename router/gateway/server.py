"""How uvicorn serves an application of the gateway."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, NoReturn

import uvicorn

from router.config import Config
from router.gateway import garbage
from router.gateway.beside import beside

LOOK_S, STUCK_S = 2.0, 30.0


def server_config(config: Config, app: Any, **changes: Any) -> uvicorn.Config:
    """uvicorn's configuration of the endpoint that clients see. changes: settings of uvicorn that differ from it."""
    settings: dict[str, Any] = {
        "host": config.server.host,
        "port": config.server.port,
        "http": "httptools",
        "ws": "none",
        "log_config": None,
        "access_log": False,
        "proxy_headers": False,
        "server_header": False,
        "timeout_keep_alive": round(config.server.keep_alive_timeout_secs),
        "timeout_graceful_shutdown": round(config.server.shutdown_grace_period_secs),
    }
    return uvicorn.Config(app, **{**settings, **changes})


async def serve_app(config: Config, app: Any, *, idle: Callable[[], bool], **changes: Any) -> None:
    """Serve an application until SIGINT or SIGTERM. idle: returns whether it has no request on its way. changes: as
    `server_config` takes them."""
    server = uvicorn.Server(server_config(config, app, **changes))
    with tended(idle), beside(cut_off_stuck(server.server_state.connections)):
        await server.serve()


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
