"""The gateway as one ASGI application; this file only wires it together.

A POST to one of `openai_request.ROUTES` goes straight to the `Gateway`, and every other request, which is rare, to
FastAPI. A data path through FastAPI and httpx would cost ten times the CPU.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from typing import Any, Protocol

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from starlette.exceptions import HTTPException

from router.config import Config
from router.core.router import Router
from router.errors import Unauthorized, UnknownUrl
from router.gateway.admin import add_admin_routes, answer_of
from router.gateway.body_reader import BodyReader
from router.gateway.client import Client, Receive, Scope, Send
from router.gateway.decider import LocalDecider
from router.gateway.handler import Gateway
from router.gateway.headers import admits
from router.gateway.metrics import Metrics, RouterCollector, TraceCollector
from router.gateway.openai_request import ROUTES
from router.gateway.snapshot import Snapshot
from router.gateway.trace_writer import TraceWriter
from router.gateway.upstream import Upstream
from router.types import EngineId

OPEN = frozenset(("/health", "/liveness", "/readiness", "/metrics"))  # every other path requires the key, if one is set


class HealthWatch(Protocol):
    """Keeps the health of the fleet up to date while the application runs, as `engines.discovery.Discovery` does."""

    def running(self) -> AbstractAsyncContextManager[None]: ...


class App:
    """The ASGI application made by `create_app`."""

    def __init__(self, config: Config, gateway: Gateway, rest: FastAPI) -> None:
        self._key = config.server.api_key
        self._gateway, self._rest = gateway, rest

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            if not (self._key is None or scope["path"] in OPEN or admits(scope["headers"], self._key)):
                error = Unauthorized("Incorrect API key provided.")
                return await Client(scope, receive, send).fail(error, [(b"www-authenticate", b"Bearer")])
            if scope["method"] == "POST" and scope["path"] in ROUTES:
                return await self._gateway.handle(scope, receive, send)
        await self._rest(scope, receive, send)


def create_app(
    config: Config,
    router: Router,
    engines: Mapping[EngineId, str],
    *,
    discovery: HealthWatch | None = None,
    registry: CollectorRegistry | None = None,
    upstream: Upstream | None = None,
    clock: Callable[[], float] = time.monotonic,
    wall_clock: Callable[[], float] = time.time,
    new_id: Callable[[], str] = lambda: secrets.token_hex(16),
) -> App:
    """Make the application of `router` over `engines` (id -> base URL), which it adds to the router's fleet.

    discovery: runs as long as the application; without it the caller has to say which engines are healthy. registry:
    takes the metrics; None: a new one does. clock: monotonic, seconds. wall_clock: Unix time, seconds. new_id: makes
    the id of a request whose client sent none.

    Raises ConfigError if the file of the recording or of the snapshot cannot be written.
    """
    registry = registry or CollectorRegistry()
    upstream, body_reader = upstream or Upstream(config), BodyReader()
    for engine in engines:
        router.add_engine(engine)
    registry.register(RouterCollector(router.status))
    trace_writer = _trace_writer(config, registry)
    snapshot = None
    if config.recording.snapshot is not None:
        snapshot = Snapshot(config.recording.snapshot, router.learned, engines, clock=clock, wall_clock=wall_clock)
        snapshot.start()
    gateway = Gateway(
        config,
        LocalDecider(router, clock),
        engines,
        upstream,
        body_reader,
        Metrics(registry),
        trace_writer=trace_writer,
        clock=clock,
        new_id=new_id,
    )

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            if trace_writer is not None:
                stack.enter_context(trace_writer.running())
            if snapshot is not None:
                await stack.enter_async_context(snapshot.running(config.recording.snapshot_interval_secs))
            await stack.enter_async_context(upstream.running())
            await stack.enter_async_context(body_reader.running())
            if discovery is not None:
                await stack.enter_async_context(discovery.running())
            yield

    rest = FastAPI(title="Leafcutter", openapi_url=None, lifespan=lifespan)
    rest.add_exception_handler(HTTPException, _answer_unknown)
    _add_health(rest, router)
    _add_models(rest, router, round(wall_clock()))
    add_admin_routes(rest, config, router, engines, clock)

    @rest.get("/metrics")
    async def metrics() -> Response:
        return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)

    return App(config, gateway, rest)


def _trace_writer(config: Config, registry: CollectorRegistry) -> TraceWriter | None:
    options = config.recording
    if options.record is None:
        return None
    salt = secrets.token_bytes(32)
    writer = TraceWriter(options.record, max_bytes=options.record_max_bytes, files=options.record_files, salt=salt)
    registry.register(TraceCollector(lambda: writer.counts))
    return writer


def _add_health(rest: FastAPI, router: Router) -> None:
    @rest.get("/health")
    @rest.get("/liveness")
    async def alive() -> Response:
        """The gateway itself is alive."""
        return Response()

    @rest.get("/readiness")
    async def ready() -> Response:
        """The gateway can serve requests, because at least one engine is healthy."""
        engines = router.status().engines
        healthy = sum(engine.healthy for engine in engines.values())
        content = {
            "status": "ready" if healthy else "not ready",
            "healthy_workers": healthy,
            "total_workers": len(engines),
        }
        return JSONResponse(content, status_code=200 if healthy else 503)


def _add_models(rest: FastAPI, router: Router, started: int) -> None:
    @rest.get("/v1/models")
    async def models() -> dict[str, Any]:
        """Every model that a healthy engine serves, once. `created` is the Unix time when this gateway started."""
        engines = router.status().engines.values()
        names = {model: None for engine in engines if engine.healthy for model in engine.info.models}
        data = [{"id": name, "object": "model", "created": started, "owned_by": "vllm"} for name in names]
        return {"object": "list", "data": data}


async def _answer_unknown(request: Request, problem: Exception) -> Response:
    """FastAPI's own errors, for a path or method that does not exist, as OpenAI error bodies."""
    error = UnknownUrl(f"Unknown request URL: {request.method} {request.url.path}.")
    return answer_of(error, problem.status_code if isinstance(problem, HTTPException) else error.status)
