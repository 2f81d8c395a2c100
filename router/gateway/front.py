"""The doors of the gateway, where every request comes in: they check the key and hand on what is for engines.

A POST to a route of `apis.TABLE`, and any request for a path that the operator has opened, go straight to the
`Gateway`, and every other request, which is rare, to the application `rest`. A data path through FastAPI and httpx
would cost ten times the CPU.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from typing import Any

from router.config import Config
from router.errors import Forbidden, RequestError, Unauthorized, UnknownUrl
from router.gateway.access import Access
from router.gateway.apis import TABLE
from router.gateway.client import KEY, Client, Receive, Scope, Send
from router.gateway.handler import Gateway
from router.gateway.routes import OpenedPaths

OPEN = frozenset(("/health", "/liveness", "/readiness"))  # every other path requires a key, if any is set
METRICS = frozenset(("/metrics",))  # it names engines and clients' keys, so it is open only where these are one party's
# What begins so, and what goes to engines, is for clients. All else, whatever is added later, is for the admin.
CLIENTS = "/v1/"
CHALLENGE = [(b"www-authenticate", b"Bearer")]

JSON = (b"content-type", b"application/json")
LEAVING = {"status": "shutting down"}

Application = Callable[[Scope, Receive, Send], Awaitable[None]]
"""An ASGI application."""


class App:
    """The whole gateway as one ASGI application. rest: serves all that `gateway` does not. access: knows the keys."""

    def __init__(self, config: Config, gateway: Gateway, rest: Application, access: Access) -> None:
        self._gateway, self._rest, self._access = gateway, rest, access
        self._opened = OpenedPaths(config.server.allow_paths)
        self.leaving = False
        """The gateway is about to end, and load balancers should notice."""
        self.admin = AdminApp(config, rest, access)
        """What the listener for operators serves, if there is one."""
        self._serves_operators = config.server.admin_port is None
        shows_metrics = self._serves_operators and not access.ring.separates
        self._open = OPEN | METRICS if shows_metrics else OPEN

    def refused(self, reason: str) -> None:
        """A client was refused before its request came here."""
        self._gateway.metrics.refused(reason)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            method, path = scope["method"], scope["path"]
            is_listed = method == "POST" and path in TABLE
            route = path if is_listed else self._opened.find(method, scope["raw_path"])
            if path not in self._open and (error := self._refusal(scope, route)) is not None:
                return await refuse(error, scope, receive, send)
            if route is not None:
                return await self._gateway.handle(route, scope, receive, send)
            if self.leaving and path == "/readiness":
                return await Client(scope, receive, send).reply(503, [JSON], json.dumps(LEAVING).encode())
        await self._rest(_with_get(scope), receive, send)

    def _refusal(self, scope: Scope, route: str | None) -> RequestError | None:
        """Why the client may not have what it asks for. Also puts its key into the scope.

        route: where the request goes, if it goes to an engine.
        """
        path = scope["path"]
        key = self._access.find(scope["headers"])
        if key is None:
            return Unauthorized("Incorrect API key provided.")
        scope[KEY] = key
        if route is not None or path.startswith(CLIENTS) or path in TABLE:
            return None
        if not self._serves_operators:
            return UnknownUrl(f"Unknown request URL: {scope['method']} {path}.")
        return None if key.admin else Forbidden("This key is not for operators' routes.")


class AdminApp:
    """Operators' routes on a listener of their own. It wants the admin's key, if there is one, but for health and
    metrics."""

    def __init__(self, config: Config, rest: Application, access: Access) -> None:
        self._rest, self._access = rest, access
        server = config.server
        self._asks = server.admin_key is not None or (server.api_key is not None and not access.ring.separates)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and self._asks and scope["path"] not in OPEN | METRICS:
            key = self._access.find(scope["headers"])
            if key is None:
                return await refuse(Unauthorized("Incorrect API key provided."), scope, receive, send)
            if not key.admin:
                return await refuse(Forbidden("This key is not for operators' routes."), scope, receive, send)
        await self._rest(_with_get(scope), receive, send)


def _with_get(scope: Scope) -> Scope:
    """GET in place of HEAD: the server leaves the body out."""
    return {**scope, "method": "GET"} if scope.get("method") == "HEAD" else scope


async def refuse(error: RequestError, scope: Scope, receive: Receive, send: Send) -> None:
    """Answer with an error."""
    await Client(scope, receive, send).fail(error, CHALLENGE if isinstance(error, Unauthorized) else [])


def readiness(healthy: int, total: int) -> tuple[int, dict[str, Any]]:
    """The answer of /readiness, as its status and its JSON. healthy, total: numbers of engines."""
    content = {"status": "ready" if healthy else "not ready", "healthy_workers": healthy, "total_workers": total}
    return 200 if healthy else 503, content
