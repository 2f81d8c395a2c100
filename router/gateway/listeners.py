"""The sockets on which the gateway listens, and the listener that operators may have for themselves."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from router.config import Config, ServerOptions
from router.errors import SetupError
from router.gateway.server import QuietServer, server_config
from router.gateway.server_tls import ServerTls

BACKLOG = 2048


@asynccontextmanager
async def serving(config: Config, app: Any, listeners: Sequence[socket.socket], **changes: Any) -> AsyncIterator[None]:
    """Serve an application beside the context. changes: as `server_config` takes them."""
    server = QuietServer(server_config(config, app, lifespan="off", **changes))
    task = asyncio.create_task(server.serve(list(listeners)))
    try:
        yield
    finally:
        server.should_exit = True
        server.force_exit = True  # its requests are short
        await task


def listen(host: str, port: int, option: str = "port") -> list[socket.socket]:
    """A listening socket for every address of `host`. option: chooses the port. Raises SetupError."""
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
        flag = option.replace("_", "-")
        raise SetupError(f"cannot listen on {host}:{port} ({error.strerror}): choose with --{flag}") from None
    return sockets


def url_of(options: ServerOptions, listener: socket.socket) -> str:
    """Where it listens, for the log."""
    host, port = listener.getsockname()[:2]
    scheme = "http" if options.tls_cert is None else "https"
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"


def tls_changes(tls: ServerTls | None) -> dict[str, Any]:
    """What `server_config` takes so that a server speaks TLS."""
    return {} if tls is None else {"ssl_context_factory": lambda *_: tls.context}
