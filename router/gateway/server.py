"""How uvicorn serves an application of the gateway."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn

from router.config import Config
from router.gateway import garbage


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


async def serve_app(config: Config, app: Any, *, idle: Callable[[], bool]) -> None:
    """Serve an application until SIGINT or SIGTERM. idle: returns whether it has no request on its way."""
    with tended(idle):
        await uvicorn.Server(server_config(config, app)).serve()


@contextmanager
def tended(idle: Callable[[], bool]) -> Iterator[None]:
    """Keep the garbage collector of this process from pausing it. idle: as `garbage.tend` takes it."""
    tending = asyncio.create_task(garbage.tend(idle))
    try:
        yield
    finally:
        tending.cancel()


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
