"""The door of the gateway, where every request comes in: it checks the key and hands on what is for engines.

A POST to a route of `apis.TABLE`, and any request for a path that the operator has opened, go straight to the
`Gateway`, and every other request, which is rare, to the application `rest`. A data path through FastAPI and httpx
would cost ten times the CPU.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from typing import Any

from router.config import Config
from router.errors import Unauthorized
from router.gateway.apis import TABLE
from router.gateway.client import Client, Receive, Scope, Send
from router.gateway.handler import Gateway
from router.gateway.headers import admits
from router.gateway.routes import OpenedPaths

OPEN = frozenset(("/health", "/liveness", "/readiness", "/metrics"))  # every other path requires the key, if one is set

JSON = (b"content-type", b"application/json")
LEAVING = {"status": "shutting down"}

Application = Callable[[Scope, Receive, Send], Awaitable[None]]
"""An ASGI application."""


class App:
    """The whole gateway as one ASGI application. rest: serves all that `gateway` does not."""

    def __init__(self, config: Config, gateway: Gateway, rest: Application) -> None:
        self._key = config.server.api_key
        self._gateway, self._rest = gateway, rest
        self._opened = OpenedPaths(config.server.allow_paths)
        self.leaving = False
        """The gateway is about to end, and load balancers should notice."""

    def refused(self, reason: str) -> None:
        """A client was refused before its request came here."""
        self._gateway.metrics.refused(reason)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            if not (self._key is None or scope["path"] in OPEN or admits(scope["headers"], self._key)):
                error = Unauthorized("Incorrect API key provided.")
                return await Client(scope, receive, send).fail(error, [(b"www-authenticate", b"Bearer")])
            if scope["method"] == "POST" and scope["path"] in TABLE:
                return await self._gateway.handle(scope["path"], scope, receive, send)
            if template := self._opened.find(scope["method"], scope["raw_path"]):
                return await self._gateway.handle(template, scope, receive, send)
            if scope["method"] == "HEAD":
                scope = {**scope, "method": "GET"}  # the server leaves the body out
            if self.leaving and scope["path"] == "/readiness":
                return await Client(scope, receive, send).reply(503, [JSON], json.dumps(LEAVING).encode())
        await self._rest(scope, receive, send)


def readiness(healthy: int, total: int) -> tuple[int, dict[str, Any]]:
    """The answer of /readiness, as its status and its JSON. healthy, total: numbers of engines."""
    content = {"status": "ready" if healthy else "not ready", "healthy_workers": healthy, "total_workers": total}
    return 200 if healthy else 503, content
