"""The doors of the gateway, where every request comes in: they check the key and hand completions to the data path.

A POST to one of `openai_request.ROUTES` goes straight to the `Gateway`, and every other request, which is rare, to the
application `rest`. A data path through FastAPI and httpx would cost ten times the CPU.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from router.config import Config
from router.errors import Forbidden, RequestError, Unauthorized, UnknownUrl
from router.gateway.access import Access
from router.gateway.client import KEY, Client, Receive, Scope, Send
from router.gateway.handler import Gateway
from router.gateway.openai_request import ROUTES

OPEN = frozenset(("/health", "/liveness", "/readiness"))  # every other path requires a key, if any is set
METRICS = frozenset(("/metrics",))  # it names engines and clients' keys, so it is open only where these are one party's
CLIENTS = "/v1/"  # what begins so, and ROUTES, is for clients. All else, whatever is added later, is for the admin
CHALLENGE = [(b"www-authenticate", b"Bearer")]

Application = Callable[[Scope, Receive, Send], Awaitable[None]]
"""An ASGI application."""


class App:
    """The whole gateway as one ASGI application. rest: serves all that `gateway` does not. access: knows the keys."""

    def __init__(self, config: Config, gateway: Gateway, rest: Application, access: Access) -> None:
        self._gateway, self._access = gateway, access
        self._rest = rest
        self.admin = AdminApp(config, rest, access)
        """What the listener for operators serves, if there is one."""
        self._serves_operators = config.server.admin_port is None
        shows_metrics = self._serves_operators and not access.ring.separates
        self._open = OPEN | METRICS if shows_metrics else OPEN

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            path = scope["path"]
            if path not in self._open and (error := self._refusal(scope, path)) is not None:
                return await refuse(error, scope, receive, send)
            if scope["method"] == "POST" and path in ROUTES:
                return await self._gateway.handle(scope, receive, send)
        await self._rest(scope, receive, send)

    def _refusal(self, scope: Scope, path: str) -> RequestError | None:
        """Why the client may not have what it asks for. Also puts its key into the scope."""
        key = self._access.find(scope["headers"])
        if key is None:
            return Unauthorized("Incorrect API key provided.")
        scope[KEY] = key
        if path.startswith(CLIENTS) or path in ROUTES:
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
        await self._rest(scope, receive, send)


async def refuse(error: RequestError, scope: Scope, receive: Receive, send: Send) -> None:
    """Answer with an error."""
    await Client(scope, receive, send).fail(error, CHALLENGE if isinstance(error, Unauthorized) else [])


def readiness(healthy: int, total: int) -> tuple[int, dict[str, Any]]:
    """The answer of /readiness, as its status and its JSON. healthy, total: numbers of engines."""
    content = {"status": "ready" if healthy else "not ready", "healthy_workers": healthy, "total_workers": total}
    return 200 if healthy else 503, content
