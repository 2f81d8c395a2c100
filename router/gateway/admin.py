"""The routes for operators, about engines, decisions and policies.

GET  /workers               every engine: what it reports of itself, and what was learned of it;
                            `worker_routes` has those that change them
GET  /explain/{request_id}  why that request went where it did: every try, with its outcome
POST /explain               takes the body of a request and tells where it would go now and why; nothing is sent or
                            booked. The route that the body is meant for is given by `?route=` or the header
                            x-leafcutter-route; without either it is chat completions
GET  /decisions?limit=      the last decisions, newest first
GET  /policy                which policies decide with what shares, which are shadows, and how their choices compare
PUT  /policy                takes {"policy": NAME} or {"split": {NAME: share, ...}}, where the shares add up to 1, and
                            optionally "shadow": [NAME, ...]. Without "shadow", all present policies go on learning
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse

from router.config import Config
from router.core.decision_log import pack
from router.core.router import Router
from router.core.status import EngineStatus
from router.core.workers import Workers
from router.errors import BadRequest, ConfigError, RequestError, UnknownRequest
from router.gateway import error_forms
from router.gateway.apis import CHAT, TABLE
from router.gateway.body_reader import BodyReader
from router.gateway.client import Client, ClientGone, Message
from router.gateway.headers import EXPLAIN_ROUTE
from router.gateway.routes import read_aliases

MOST_POLICY_BYTES = 65_536
DECISIONS, MOST_DECISIONS = 20, 1000


def add_admin_routes(
    app: FastAPI,
    config: Config,
    router: Router,
    workers: Workers,
    body_reader: BodyReader,
    clock: Callable[[], float],
) -> None:
    """Add the routes above. body_reader: runs as long as the application. clock: that of the decisions, seconds."""
    aliases = read_aliases(config.engines.model_alias)
    app.add_exception_handler(RequestError, _answer_error)
    app.add_exception_handler(ClientGone, _answer_nobody)

    @app.get("/workers")
    async def all_engines() -> list[dict[str, Any]]:
        return [_describe_engine(router, engine, workers) for engine in router.status().engines.values()]

    @app.get("/explain/{request_id:path}")
    async def explain(request_id: str) -> Response:
        entries = router.find_decisions(request_id)
        if not entries:
            raise UnknownRequest(f"No decision is kept of the request `{request_id}`.", param="request_id")
        now = clock()
        tries = [entry.describe(now) for entry in entries]
        return ascii_json({"request_id": request_id, "retries": len(entries) - 1, "decisions": tries})

    @app.post("/explain")
    async def explain_dry_run(request: Request) -> Response:
        client = Client(request.scope, request.receive, _unsendable)
        body = await client.read_body(config.server.max_payload_size)
        route = request.query_params.get("route") or client.headers.get(EXPLAIN_ROUTE, CHAT.encode()).decode("latin-1")
        if route not in TABLE:
            raise BadRequest(f"`route` must be one of {', '.join(TABLE)}.", param="route")
        block_tokens = config.routing.prefix_block_tokens
        openai_request = await body_reader.read(
            body, route=route, headers=client.headers, request_id="", block_tokens=block_tokens, aliases=aliases
        )
        now = clock()
        return ascii_json(pack(router.explain(openai_request.parsed, now), None).describe(now))

    @app.get("/decisions")
    async def decisions(request: Request) -> Response:
        now, limit = clock(), limit_of(request.query_params.get("limit"), DECISIONS, MOST_DECISIONS)
        return ascii_json({"decisions": [entry.describe(now) for entry in router.newest_decisions(limit)]})

    @app.get("/policy")
    async def policy() -> Response:
        return JSONResponse(_describe_policies(router))

    @app.put("/policy")
    async def assign(request: Request) -> Response:
        body = bytes(await Client(request.scope, request.receive, _unsendable).read_body(MOST_POLICY_BYTES))
        shares, shadows = read_assignment(body)
        try:
            router.assign(shares, shadows)
        except ConfigError as error:
            raise BadRequest(f"{error.value!r} is not {error.expected}.", param="policy") from None
        return JSONResponse(_describe_policies(router))


def read_assignment(body: bytes) -> tuple[dict[str, float], list[str] | None]:
    """Read the body of PUT /policy: the share of each policy, and the shadows (None: the body names none).

    Raises BadRequest.
    """
    try:
        fields = json.loads(body)
    except (ValueError, RecursionError):
        raise BadRequest("The body must be JSON.") from None
    if not isinstance(fields, dict) or ("policy" in fields) == ("split" in fields):
        raise BadRequest('The body must be an object with either "policy" or "split".')
    if unknown := set(fields) - {"policy", "split", "shadow"}:
        raise BadRequest(f"Unknown field `{min(unknown)}`: expected policy or split, and shadow.", param=min(unknown))
    shadows = fields.get("shadow")
    if shadows is not None and not (isinstance(shadows, list) and all(isinstance(name, str) for name in shadows)):
        raise BadRequest("`shadow` must be a list of policies.", param="shadow")
    if "split" in fields:
        return _shares(fields["split"]), shadows
    if not isinstance(fields["policy"], str):
        raise BadRequest("`policy` must be the name of a policy.", param="policy")
    return {fields["policy"]: 1.0}, shadows


def _shares(split: object) -> dict[str, float]:
    expected = 'an object of shares above 0 that add up to 1, such as {"lbgr": 0.9, "lmetric": 0.1}'
    if not isinstance(split, dict) or not split:
        raise BadRequest(f"`split` must be {expected}.", param="split")
    for share in split.values():
        if isinstance(share, bool) or not isinstance(share, int | float) or not 0 < share <= 1:
            raise BadRequest(f"`split` must be {expected}; found {str(share)[:40]}.", param="split")
    if not math.isclose(sum(split.values()), 1.0, abs_tol=1e-6):
        raise BadRequest(f"`split` must be {expected}; these add up to {sum(split.values()):g}.", param="split")
    return {name: float(share) for name, share in split.items()}


def _describe_policies(router: Router) -> dict[str, object]:
    """The policies with their shares and faults, and how their choices compare."""
    status = router.status()
    comparisons = [
        {
            "policy": each.policy,
            "shadow": each.shadow,
            "decisions": each.decisions,
            "agreement": round(each.agreed / each.decisions, 6),
            "mean_regret_s": None if each.regret_s is None else round(each.regret_s / each.decisions, 9),
        }
        for each in status.agreements
    ]
    return {
        "policy": status.policy,
        "split": {arm.policy: arm.share for arm in status.arms if arm.share},
        "shadow": [arm.policy for arm in status.arms if not arm.share],
        "faults": {arm.policy: arm.faults for arm in status.arms},
        "seconds": {arm.policy: round(arm.seconds, 6) for arm in status.arms},
        "comparisons": comparisons,
    }


def _describe_engine(router: Router, engine: EngineStatus, workers: Workers) -> dict[str, Any]:
    """An engine as operators see it, so with its URL."""
    info, error = engine.info, engine.prediction_error
    return {
        "engine": engine.engine,
        **workers.describe(engine.engine),
        "healthy": engine.healthy,
        "share": engine.share,
        "failure_rate": round(engine.failure_rate, 4),
        "order": info.order,
        "block_size": info.block_size,
        "capacity_blocks": info.capacity_blocks,
        "plugin_version": info.plugin_version,
        "vllm_version": info.vllm_version,
        "models": info.models,
        "prediction_error_ratio": None if error is None else round(error, 4),
        **router.describe(engine.engine),
    }


def limit_of(text: str | None, default: int, most: int) -> int:
    """The parameter `limit` of a request: a whole number from 1 to `most`. Raises BadRequest."""
    if text is None:
        return default
    if not (text.isascii() and text.isdigit() and len(text) < 10 and 1 <= int(text) <= most):
        raise BadRequest(f"`limit` must be a whole number from 1 to {most}.", param="limit")
    return int(text)


def ascii_json(content: object) -> Response:
    """JSON in ASCII. Names that clients chose may hold lone surrogates, which UTF-8 cannot."""
    return Response(json.dumps(content, allow_nan=False), media_type="application/json")


def answer_of(error: RequestError, path: str, status: int | None = None) -> Response:
    """Return an error as the answer to a request for `path`. status: replaces the status of the error."""
    headers = {name.decode(): value.decode() for name, value in error.headers}
    return Response(error_forms.body(error, path), status_code=status or error.status, headers=headers)


async def _answer_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestError)
    return answer_of(error, request.url.path)


async def _answer_nobody(_: Request, __: Exception) -> Response:
    """The client has left. Starlette wants an answer all the same, and nobody will read it."""
    return Response(status_code=400)


async def _unsendable(message: Message) -> None:
    raise AssertionError(f"only the application answers, not the reader of its body: {message['type']}")
