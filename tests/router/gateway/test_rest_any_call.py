"""Whatever operators' routes are called with, the answer is a success or a refusal, and never a fault.

schemathesis generates the calls from the schema that FastAPI makes of the routes. The routes read their bodies
themselves, so the schema gets the shapes of these here.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from router.config import configure
from router.core.router import Router
from router.core.workers import Workers
from router.gateway.body_reader import BodyReader
from router.gateway.rest import create_rest
from router.types import EngineId, EngineInfo
from tests.support.gateway_server import BODIES, CHAT

E0 = EngineId("engine-0")
TEXT = {"type": "string"}
SHARES = {"type": "object", "additionalProperties": {"type": "number"}}
SHAPES: dict[tuple[str, str], dict[str, Any]] = {
    ("/workers", "post"): {"type": "object", "properties": {"url": TEXT}},
    ("/workers/{name}", "put"): {"type": "object", "properties": {"state": TEXT}},
    ("/policy", "put"): {
        "type": "object",
        "properties": {"policy": TEXT, "split": SHARES, "shadow": {"type": "array", "items": TEXT}},
    },
    ("/explain", "post"): {
        "type": "object",
        "properties": {"model": TEXT, "messages": {"type": "array", "items": {"type": "object"}}},
    },
}
QUERIES: dict[tuple[str, str], str] = {
    ("/decisions", "get"): "limit",
    ("/explain", "post"): "route",
    ("/workers/{name}", "delete"): "force",
}


def create() -> Any:
    config = configure(policy="lbgr", lbgr_cold_samples=0)
    router = Router(config.routing, config.policies, rng=random.Random(1))
    workers = Workers(router, {E0: "http://127.0.0.1:1"})
    router.set_info(E0, EngineInfo(models=("tiny",)))
    router.set_health(E0, True)
    clock = iter(range(1 << 60)).__next__
    return create_rest(config, router, workers, CollectorRegistry(), BodyReader(), clock=clock, wall_clock=clock)


def schema() -> Any:
    found: dict[str, Any] = create().openapi()
    for (path, method), shape in SHAPES.items():
        content = {"application/json": {"schema": {"anyOf": [shape, {}]}}}
        found["paths"][path][method]["requestBody"] = {"required": False, "content": content}
    for (path, method), name in QUERIES.items():
        parameters = found["paths"][path][method].setdefault("parameters", [])
        parameters.append({"name": name, "in": "query", "schema": TEXT})
    return schemathesis.openapi.from_dict(found)


SCHEMA = schema()
OPERATIONS = {f"{each.ok().method.upper()} {each.ok().path}": each.ok() for each in SCHEMA.get_all_operations()}


@pytest.fixture(scope="module")
def client() -> Iterator[TestClient]:
    with TestClient(create(), raise_server_exceptions=False) as client:
        yield client


def test_the_schema_has_all_routes() -> None:
    assert len(OPERATIONS) >= 14
    assert {f"{method.upper()} {path}" for path, method in (*SHAPES, *QUERIES)} <= set(OPERATIONS)


@pytest.mark.parametrize("operation", OPERATIONS)
def test_any_call_is_served_or_refused(operation: str, client: TestClient) -> None:
    @settings(max_examples=25, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(OPERATIONS[operation].as_strategy(), st.binary(max_size=20))
    def call(case: Any, raw: bytes) -> None:
        sends = (operation.split()[1], operation.split()[0].lower()) in SHAPES
        body = json.dumps(case.body).encode() if isinstance(case.body, dict | list | str | int) else raw
        answer = client.request(
            case.method,
            case.formatted_path,
            params=case.query or None,
            content=body if sends else None,
        )
        assert answer.status_code < 500, answer.text
        assert answer.status_code < 400 or answer.json()["error"]["message"]

    call()


def test_well_formed_calls_are_served(client: TestClient) -> None:
    """So that the others are not all refused at the door."""
    assert client.post("/explain", json=BODIES[CHAT]).status_code == 200
    assert client.put("/policy", json={"policy": "lmetric"}).status_code == 200
    assert client.post("/workers", json={"url": "http://127.0.0.1:2"}).status_code == 201


@pytest.mark.parametrize("path", ["/decisions/", "/policy/", "/health/", "//decisions"])
def test_nobody_is_redirected(path: str, client: TestClient) -> None:
    """The address of a redirect would be made of the client's own `host`."""
    answer = client.get(path, headers={"host": "elsewhere.example"}, follow_redirects=False)
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "unknown_url")
    assert "location" not in answer.headers
