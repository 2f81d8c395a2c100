"""Whatever is in a body: it is refused as a bad request, or it is placed, logged, explained and told to other
processes."""

from __future__ import annotations

import json
import random
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.config import configure
from router.core.decision_log import pack
from router.core.router import Router
from router.errors import BadRequest
from router.gateway.apis import CHAT
from router.gateway.apis import TABLE as APIS
from router.gateway.apis.base import MOST_COUNT
from router.gateway.openai_request import parse_request
from router.policies.table import TABLE
from router.processes.messages import pack_request, unpack_request
from router.processes.protocol import Request
from router.types import Ending, EngineId, Outcome
from tests.support.gateway_server import BODIES, served

TEXT = st.text(st.characters(exclude_categories=()), max_size=40)  # lone surrogates included
NUMBER = st.integers() | st.floats() | st.sampled_from([10**400, -(10**400), 1 << 63, 1 << 64, 5e-324])
SCALAR = st.none() | st.booleans() | NUMBER | TEXT
ANYTHING = st.recursive(SCALAR, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4))
FIELDS = st.fixed_dictionaries(
    {},
    optional={
        "model": TEXT | ANYTHING,
        "prompt": TEXT | st.lists(NUMBER, max_size=9) | ANYTHING,
        "messages": st.lists(st.fixed_dictionaries({"role": TEXT, "content": TEXT | ANYTHING}), max_size=3) | ANYTHING,
        "max_tokens": NUMBER | ANYTHING,
        "max_completion_tokens": NUMBER,
        "n": NUMBER,
        "stream": ANYTHING,
        "stream_options": ANYTHING,
        "user": TEXT,
        "session_id": TEXT | ANYTHING,
        "cache_salt": ANYTHING,
        "tools": ANYTHING,
        "echo": ANYTHING,
    },
)
HEADERS = st.dictionaries(
    st.sampled_from([b"x-session-id", b"x-slo-ttft-ms", b"x-slo-tpot-ms"]),
    st.binary(max_size=12) | st.sampled_from([b"5e-324", b"1e308", b"1"]),
)


@given(FIELDS, st.sampled_from(tuple(APIS)), HEADERS, st.booleans(), ANYTHING, st.sampled_from(tuple(TABLE)))
def test_any_body_is_refused_or_served_to_its_end(
    fields: dict[str, Any], route: str, headers: dict[bytes, bytes], streams: bool, other: Any, policy: str
) -> None:
    config = configure(policy=policy, lbgr_cold_samples=0)
    router = Router(config.routing, config.policies, rng=random.Random(1))
    for engine in (EngineId("engine-0"), EngineId("engine-1")):
        router.add_engine(engine)
        router.set_health(engine, True)
    body = json.dumps({**fields, "stream": streams, "other": other}).encode()
    try:
        parsed = parse_request(body, route=route, headers=headers, request_id="r", block_tokens=64).parsed
        decision = router.route(parsed, 1.0)
    except BadRequest as error:
        json.loads(error.body())
        return
    told = unpack_request(msgspec.msgpack.decode(msgspec.msgpack.encode(pack_request(parsed)), type=Request))
    assert (told.prompt.keys, told.max_tokens, told.choices) == (parsed.prompt.keys, parsed.max_tokens, parsed.choices)
    assert (told.model, told.session) == (parsed.model, parsed.session)
    router.explain(parsed, 1.0)
    router.complete(decision, Outcome(Ending.OK, 2.0, None, 10, 0, 5))
    json.dumps([each.describe(3.0) for each in router.newest_decisions(9)], allow_nan=False)
    json.dumps(pack(decision, None).describe(3.0), allow_nan=False)
    json.dumps(router.learned.dump(3.0), allow_nan=False)


ODD: dict[str, dict[str, Any]] = {
    "a model of half a character": {"model": "\ud800"},
    "a session of half a character": {"user": "\udfff"},
    "a text of half a character": {"messages": [{"role": "user", "content": "\ud83d"}]},
    "more tokens than there can be": {"max_tokens": 10**400},
    "more answers than there can be": {"n": 10**400},
    "a number beyond a double": {"temperature": 10**400, "seed": 1 << 70},
}


@pytest.mark.parametrize("name", ODD)
async def test_odd_fields_break_neither_the_request_nor_what_operators_read(name: str) -> None:
    async with served(known=False) as gateway:
        body = json.dumps({**BODIES[CHAT], **ODD[name]}).encode()
        answer = await gateway.client.post(CHAT, content=body, headers={"x-request-id": "r"})
        assert answer.status_code == 200
        assert json.loads(gateway.engines[0].requests[0].body) == json.loads(body)
        for path in ("/decisions", "/explain/r", "/workers", "/metrics", "/policy"):
            assert (await gateway.client.get(path)).status_code == 200, path
        assert (await gateway.client.post("/explain", content=body)).status_code == 200
        (decision,) = (await gateway.client.get("/decisions")).json()["decisions"]
        assert decision["outcome"]["ending"] == "ok"


async def test_a_model_of_half_a_character_that_nobody_serves_is_not_found() -> None:
    async with served() as gateway:
        answer = await gateway.client.post(CHAT, content=json.dumps({**BODIES[CHAT], "model": "\ud800"}).encode())
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "model_not_found")


def test_counts_beyond_all_reason_are_one_count() -> None:
    body = json.dumps({**BODIES[CHAT], "max_tokens": 10**400, "n": 10**400}).encode()
    parsed = parse_request(body, route=CHAT, headers={}, request_id="r", block_tokens=64).parsed
    assert parsed.max_tokens == parsed.choices == MOST_COUNT
