"""Everything that is not for engines, as one FastAPI application: health, models, metrics and the operators' routes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from starlette.exceptions import HTTPException

from router.config import Config
from router.core.router import Router
from router.core.workers import Workers
from router.errors import NotFound, UnknownUrl
from router.gateway.admin import add_admin_routes, answer_of
from router.gateway.body_reader import BodyReader
from router.gateway.front import readiness
from router.gateway.metrics import PresentEngines
from router.gateway.routes import read_aliases
from router.gateway.session_routes import add_session_routes
from router.gateway.worker_routes import add_worker_routes

Lifespan = Callable[[FastAPI], AbstractAsyncContextManager[None]]


def create_rest(
    config: Config,
    router: Router,
    workers: Workers,
    registry: CollectorRegistry,
    body_reader: BodyReader,
    *,
    clock: Callable[[], float],
    wall_clock: Callable[[], float],
    lifespan: Lifespan | None = None,
) -> FastAPI:
    """Make the application. clock, wall_clock: as `app.create_app` takes them. registry: has the metrics.
    body_reader, lifespan: run as long as the application."""
    # A redirect would lead to whatever host the client names.
    rest = FastAPI(title="Leafcutter", openapi_url=None, redirect_slashes=False, lifespan=lifespan)
    rest.add_exception_handler(HTTPException, _answer_unknown)
    _add_health(rest, router)
    _add_models(rest, router, read_aliases(config.engines.model_alias), round(wall_clock()))
    add_admin_routes(rest, config, router, workers, body_reader, clock)
    add_worker_routes(rest, workers)
    add_session_routes(rest, router, clock)
    present = PresentEngines(registry, workers.addresses)

    @rest.get("/metrics")
    async def metrics() -> Response:
        return Response(generate_latest(present), media_type=CONTENT_TYPE_LATEST)

    return rest


def _add_health(rest: FastAPI, router: Router) -> None:
    @rest.get("/health")
    @rest.get("/liveness")
    async def alive() -> Response:
        """The gateway itself is alive."""
        return Response()

    @rest.get("/readiness")
    async def ready() -> Response:
        """The gateway can serve requests, because at least one engine is healthy and does not drain."""
        engines = router.status().engines
        status, content = readiness(sum(engine.ready for engine in engines.values()), len(engines))
        return JSONResponse(content, status_code=status)


def _add_models(rest: FastAPI, router: Router, aliases: Mapping[str, str], started: int) -> None:
    def served() -> dict[str, dict[str, Any]]:
        """Every model that a healthy engine serves, once, and every alias of one."""
        engines = router.status().engines.values()
        names = {model: model for engine in engines if engine.healthy for model in engine.info.models}
        names |= {alias: model for alias, model in aliases.items() if model in names}
        about = {"object": "model", "created": started, "owned_by": "vllm"}
        return {name: {"id": name, **about, "root": model} for name, model in names.items()}

    @rest.get("/v1/models")
    async def models() -> dict[str, Any]:
        """`created` is the Unix time when this gateway started. `root` differs from `id` if that is an alias."""
        return {"object": "list", "data": list(served().values())}

    @rest.get("/v1/models/{name:path}")
    async def model(name: str) -> dict[str, Any]:
        try:
            return served()[name]
        except KeyError:
            raise NotFound(f"The model `{name}` does not exist.", param="model") from None


async def _answer_unknown(request: Request, problem: Exception) -> Response:
    """FastAPI's own errors, for a path or method that does not exist, as OpenAI error bodies."""
    error = UnknownUrl(f"Unknown request URL: {request.method} {request.url.path}.")
    status = problem.status_code if isinstance(problem, HTTPException) else error.status
    return answer_of(error, request.url.path, status)
