"""The routes by which operators change which engines there are, without a restart.

POST   /workers         takes {"url": BASE URL} and adds that server: 201; 409 if it is there already
PUT    /workers/{name}  takes {"state": "draining"}: it gets no new requests, and those that run go on; or {"state":
                        "active"}: it is taken back, from its removal too
DELETE /workers/{name}  removes it when no request is left on it: 202; 204 if it is gone already. With `?force=true` it
                        goes at once: requests without a byte of an answer move to others, and the rest is cut off

{name} is that of the worker, which GET /workers tells of each engine.
"""

from __future__ import annotations

import json
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse

from router.core.workers import State, Worker, Workers
from router.errors import BadRequest, ConfigError
from router.gateway.client import Client, Message

MOST_BYTES = 65_536


def add_worker_routes(app: FastAPI, workers: Workers) -> None:
    """Add the routes above. Errors are answered as those of the other routes are."""

    @app.post("/workers")
    async def add(request: Request) -> Response:
        url = await _field(request, "url")
        try:
            worker = workers.add(url)
        except ConfigError as error:
            raise BadRequest(f"`url` = {error.value!r} is not {error.expected}.", param="url") from None
        return JSONResponse(_describe(worker), status_code=201)

    @app.put("/workers/{name}")
    async def drain(request: Request, name: str) -> Response:
        state = await _field(request, "state")
        if state not in (State.DRAINING, State.ACTIVE):
            raise BadRequest(f"`state` = {state[:40]!r} is not draining or active.", param="state")
        worker = workers.find(name)
        workers.drain(worker, draining=state == State.DRAINING)
        return JSONResponse(_describe(worker))

    @app.delete("/workers/{name}")
    async def remove(request: Request, name: str) -> Response:
        force = request.query_params.get("force", "false")
        if force not in ("true", "false"):
            raise BadRequest(f"`force` = {force[:40]!r} is not true or false.", param="force")
        worker = workers.find(name)
        if workers.remove(worker, force=force == "true"):
            return Response(status_code=204)
        return JSONResponse(_describe(worker), status_code=202)


async def _field(request: Request, name: str) -> str:
    """The text in the only field of the body. Raises BadRequest, PayloadTooLarge and ClientGone."""
    body = bytes(await Client(request.scope, request.receive, _unsendable).read_body(MOST_BYTES))
    try:
        fields = json.loads(body)
    except (ValueError, RecursionError):
        raise BadRequest("The body must be JSON.") from None
    if not isinstance(fields, dict) or not isinstance(fields.get(name), str):
        raise BadRequest(f"The body must be an object with the text `{name}`.", param=name)
    if unknown := sorted(fields.keys() - {name}):
        raise BadRequest(f"Unknown field `{unknown[0][:40]}`: expected {name} alone.", param=unknown[0][:40])
    text: str = fields[name]
    return text


def _describe(worker: Worker) -> dict[str, Any]:
    return {"worker": worker.name, "url": worker.url, "state": worker.state.value, "engines": list(worker.engines)}


async def _unsendable(message: Message) -> None:
    raise AssertionError(f"only the application answers, not the reader of its body: {message['type']}")
