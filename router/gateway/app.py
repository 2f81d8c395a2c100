"""Wiring only: the gateway as one ASGI application.

POST to a path of parse.ROUTES goes straight to the gateway; everything else, which is rare, to FastAPI. (A data path
through FastAPI and httpx costs ten times the CPU.)
"""

from __future__ import annotations

import hmac
import secrets
import time
import uuid
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from typing import Any, Protocol

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from starlette.exceptions import HTTPException

from router.config import Config
from router.core.router import Router
from router.errors import RequestError, Unauthorized, UnknownUrl
from router.gateway.admin import add_control
from router.gateway.client import JSON_HEADER, Client, Receive, Scope, Send
from router.gateway.handler import Gateway
from router.gateway.metrics import FleetCollector, Metrics, PolicyCollector, RecordCollector
from router.gateway.openai_request import ROUTES
from router.gateway.snapshot import Snapshot
from router.gateway.trace_writer import Recorder
from router.gateway.upstream import Upstream
from router.types import EngineId

OPEN = frozenset(("/health", "/liveness", "/readiness", "/metrics"))  # all else wants the key, if there is one


class Watch(Protocol):
    """What keeps the fleet's health up to date while the application runs (`discovery.Discovery`)."""

    def running(self) -> AbstractAsyncContextManager[None]: ...


class App:
    """The ASGI application made by `create_app`."""

    def __init__(self, config: Config, gateway: Gateway, control: FastAPI) -> None:
        self._key = config.api_key
        self._gateway, self._control = gateway, control

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            if not (scope["path"] in OPEN or self._admits(scope)):
                error = Unauthorized("Incorrect API key provided.")
                return await Client(scope, receive, send).fail(error, [(b"www-authenticate", b"Bearer")])
            if scope["method"] == "POST" and scope["path"] in ROUTES:
                return await self._gateway.handle(scope, receive, send)
        await self._control(scope, receive, send)

    def _admits(self, scope: Scope) -> bool:
        if self._key is None:
            return True
        given = next((value for name, value in scope["headers"] if name == b"authorization"), b"")
        return hmac.compare_digest(given, f"Bearer {self._key}".encode())


def create_app(
    config: Config,
    router: Router,
    engines: Mapping[EngineId, str],
    *,
    discovery: Watch | None = None,
    registry: CollectorRegistry | None = None,
    forwarder: Upstream | None = None,
    clock: Callable[[], float] = time.monotonic,
    wall_clock: Callable[[], float] = time.time,
    new_id: Callable[[], str] = lambda: uuid.uuid4().hex,
) -> App:
    """The application of `router` over `engines` (id -> base URL), all of which it adds to the router's fleet.

    discovery: runs as long as the application; without it somebody else has to say which engines are healthy.
    registry: where the metrics live, a fresh one if none is given. clock: monotonic, seconds.

    Raises ConfigError if the file to record to, or that of the snapshot, cannot be written.
    """
    registry = registry or CollectorRegistry()
    forwarder = forwarder or Upstream(config)
    for engine in engines:
        router.fleet.add(engine)
    registry.register(FleetCollector(lambda: _states(router), lambda: router.index_blocks))
    experiment = router.experiment
    registry.register(PolicyCollector(lambda: experiment.arms, lambda: experiment.agreements, router.drift.alarms))
    recorder = _recorder(config, registry)
    snapshot = None
    if config.snapshot is not None:
        snapshot = Snapshot(config.snapshot, router, engines, clock=clock, wall_clock=wall_clock)
        snapshot.start()
    gateway = Gateway(
        config, router, engines, forwarder, Metrics(registry), recorder=recorder, clock=clock, new_id=new_id
    )

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            if recorder is not None:
                stack.enter_context(recorder.running())
            if snapshot is not None:
                await stack.enter_async_context(snapshot.running(config.snapshot_interval_secs))
            await stack.enter_async_context(forwarder.running())
            if discovery is not None:
                await stack.enter_async_context(discovery.running())
            yield

    control = FastAPI(title="Leafcutter", openapi_url=None, lifespan=lifespan)
    control.add_exception_handler(HTTPException, _unknown)
    _add_health(control, router)
    _add_models(control, router, round(wall_clock()))
    add_control(control, config, router, engines, clock)

    @control.get("/metrics")
    async def metrics() -> Response:
        return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)

    return App(config, gateway, control)


def _recorder(config: Config, registry: CollectorRegistry) -> Recorder | None:
    if config.record is None:
        return None
    salt = secrets.token_bytes(32)
    recorder = Recorder(config.record, max_bytes=config.record_max_bytes, files=config.record_files, salt=salt)
    registry.register(RecordCollector(lambda: recorder.counts))
    return recorder


def _states(router: Router) -> list[tuple[EngineId, int, bool]]:
    fleet = router.fleet
    return [(engine, fleet.view(engine).in_flight, fleet.healthy(engine)) for engine in fleet.ids()]


def _add_health(control: FastAPI, router: Router) -> None:
    @control.get("/health")
    @control.get("/liveness")
    async def alive() -> Response:
        """The gateway itself is there."""
        return Response()

    @control.get("/readiness")
    async def ready() -> Response:
        """It can serve: at least one engine is healthy."""
        states = _states(router)
        healthy = sum(well for _, _, well in states)
        content = {
            "status": "ready" if healthy else "not ready",
            "healthy_workers": healthy,
            "total_workers": len(states),
        }
        return JSONResponse(content, status_code=200 if healthy else 503)


def _add_models(control: FastAPI, router: Router, started: int) -> None:
    @control.get("/v1/models")
    async def models() -> dict[str, Any]:
        """Every model that a healthy engine serves, once. `created`: when this gateway started, Unix seconds."""
        fleet = router.fleet
        names = {m: None for engine in fleet.ids() if fleet.healthy(engine) for m in fleet.view(engine).info.models}
        data = [{"id": name, "object": "model", "created": started, "owned_by": "vllm"} for name in names]
        return {"object": "list", "data": data}


async def _unknown(request: Request, problem: Exception) -> Response:
    """FastAPI's own refusals, no such path or method, as OpenAI error bodies."""
    error: RequestError = UnknownUrl(f"Unknown request URL: {request.method} {request.url.path}.")
    status = problem.status_code if isinstance(problem, HTTPException) else error.status
    name, value = JSON_HEADER
    return Response(error.body(), status_code=status, headers={name.decode(): value.decode()})
