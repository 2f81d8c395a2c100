"""Keys, limits and bills hold on every API alike."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import anthropic
import httpx
import pytest

from router.gateway.apis import CHAT, MESSAGES, RESPONSES, TABLE
from router.gateway.openai_request import parse_request
from tests.router.gateway.test_apis import FIELDS, ask
from tests.router.gateway.test_tenants import TWO, bearer, entry, listed
from tests.support.fake_engine import MODEL, Script
from tests.support.gateway_server import Served, served, until

OPENED = "/inference/v1/{name}"
GENERATE = "/inference/v1/generate"
KEYED: dict[str, Any] = {"client_keys": TWO, "admin_key": "admin", "allow_paths": [OPENED]}


async def post(gateway: Served, route: str, key: str, **fields: Any) -> httpx.Response:
    body = {**FIELDS, **fields}
    return await gateway.client.post(route, json=body, headers={"x-api-key": key, "authorization": "Bearer"})


@pytest.mark.parametrize("route", [*TABLE, GENERATE])
async def test_every_route_is_for_clients_and_for_nobody_else(route: str) -> None:
    async with served(**KEYED) as gateway:
        answers = [await post(gateway, route, key) for key in ("key-a", "key-b", "key-b", "wrong")]
        assert [answer.status_code for answer in answers] == [200, 200, 200, 401]
        error = answers[-1].json()
        if route.startswith(MESSAGES):
            assert (error["type"], error["error"]["type"]) == ("error", "authentication_error")
        else:
            assert error["error"]["code"] == "invalid_api_key"
        first, second, third = gateway.engines[0].requests
        assert first.json["cache_salt"] != second.json["cache_salt"] == third.json["cache_salt"]
        assert not {"x-api-key", "authorization"} & set(first.headers)
        await gateway.ended("ok", 3)
        counted = OPENED if route == GENERATE else route
        assert gateway.value("leafcutter_requests_total", route=counted, ending="ok") == 3
        assert gateway.value("leafcutter_key_requests_total", key="b", ending="ok") == 2


async def test_beside_opened_paths_all_is_closed() -> None:
    async with served(**KEYED) as gateway:
        for method, path in (("POST", "/inference/v1"), ("GET", "/inference/v1/a%2fb"), ("OPTIONS", GENERATE)):
            response = await gateway.client.request(method, path, headers=bearer("key-a"))
            assert response.status_code == 403
        assert (await gateway.client.get(GENERATE, headers=bearer("key-a"))).status_code == 200
        assert (await gateway.client.get(GENERATE)).status_code == 401
        assert len(gateway.engines[0].requests) == 1


async def test_who_may_ask_for_one_model() -> None:
    async with served(**KEYED) as gateway:
        path = f"/v1/models/{MODEL}"
        statuses = [(await gateway.client.get(path, headers=bearer(key))).status_code for key in ("key-a", "wrong")]
        assert statuses == [200, 401]


async def test_anthropics_client_shows_its_key_and_understands_each_refusal() -> None:
    keys = listed(entry("a", "key-a", requests_per_minute=2), entry("b", "key-b"))
    async with served(client_keys=keys) as gateway:

        async def send(key: str, model: str = MODEL) -> None:
            message: Any = {"role": "user", "content": "hi"}
            async with anthropic.AsyncAnthropic(base_url=gateway.url, api_key=key, max_retries=0) as client:
                await client.messages.create(model=model, max_tokens=9, messages=[message])

        await send("key-a")
        with pytest.raises(anthropic.NotFoundError):
            await send("key-a", "no-such-model")
        with pytest.raises(anthropic.RateLimitError) as limited:
            await send("key-a")
        assert int(limited.value.response.headers["retry-after"]) >= 29
        assert limited.value.body == {"type": "error", "error": limited.value.body["error"]}  # type: ignore[index]
        with pytest.raises(anthropic.AuthenticationError):
            await send("wrong")


async def test_a_full_gateway_tells_anthropics_clients_in_their_form() -> None:
    gate = asyncio.Event()
    async with served(Script(gate=gate), max_concurrent_requests=1, queue_size=0, **KEYED) as gateway:
        first = asyncio.create_task(post(gateway, MESSAGES, "key-a"))
        await gateway.engines[0].arrived.wait()
        refused = await post(gateway, MESSAGES, "key-b")
        assert (refused.status_code, refused.json()["error"]["type"]) == (503, "overloaded_error")
        assert int(refused.headers["retry-after"]) >= 1
        gate.set()
        assert (await first).status_code == 200


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("route", [CHAT, RESPONSES, MESSAGES])
async def test_the_bill_has_the_tokens_of_every_api(route: str, stream: bool, tmp_path: Path) -> None:
    log = tmp_path / "usage.jsonl"
    async with served(usage_log=str(log), **KEYED) as gateway:
        assert (await post(gateway, route, "key-a", stream=stream)).status_code == 200
        await gateway.ended("ok")
        for kind, tokens in {"prompt": 40, "cached": 32, "output": 3}.items():
            assert gateway.value("leafcutter_key_tokens_total", key="a", kind=kind) == tokens
    (line,) = map(json.loads, log.read_text().splitlines())
    assert (line["key"], line["route"], line["ending"], line["estimated"]) == ("a", route, "ok", False)
    assert (line["prompt_tokens"], line["cached_tokens"], line["output_tokens"]) == (40, 32, 3)


@pytest.mark.parametrize("route", ["/v1/embeddings", "/v1/rerank"])
async def test_tokens_count_against_the_limit_where_nothing_is_generated(route: str) -> None:
    keys = listed(entry("a", "key-a", tokens_per_minute=400))
    async with served(client_keys=keys) as gateway:
        statuses = [(await post(gateway, route, "key-a")).status_code for _ in range(20)]
        assert statuses[0] == 200
        assert statuses[-1] == 429


async def test_the_weight_of_a_key_decides_in_the_queue() -> None:
    keys = listed(entry("a", "key-a", weight=2), entry("b", "key-b"))
    gate = asyncio.Event()
    async with served(Script(gate=gate), max_concurrent_requests=1, client_keys=keys) as gateway:
        waiting = [asyncio.create_task(post(gateway, CHAT, "key-b"))]
        await gateway.engines[0].arrived.wait()
        for key, user in (("key-b", "b"), ("key-a", "a")):
            for _ in range(8):
                waiting.append(asyncio.create_task(post(gateway, CHAT, key, user=user)))
                await until(lambda: gateway.value("leafcutter_queue_length") == len(waiting) - 1)
        gate.set()
        assert {(await each).status_code for each in waiting} == {200}
        order = [request.json["user"] for request in gateway.engines[0].requests[1:]]
        assert order[:6] == ["a", "a", "b"] * 2


@pytest.mark.parametrize("content_type", [b"multipart/form-data; boundary=x", b"multipart/form-data", b"text/plain"])
def test_on_an_opened_path_no_header_keeps_the_salt_out_of_a_json_body(content_type: bytes) -> None:
    body = b'{"model":"m","prompt":"x"}'
    headers = {b"content-type": content_type}
    request = parse_request(body, route=OPENED, headers=headers, request_id="r", block_tokens=16, salt=b"secret")
    assert "cache_salt" in json.loads(b"".join(request.body_for_engine(body)))


@pytest.mark.parametrize("body", [b"", b"{", b"[1]", b"\xff\xfe", b"{}"])
def test_on_an_opened_path_a_body_without_fields_passes(body: bytes) -> None:
    request = parse_request(body, route=OPENED, headers={}, request_id="r", block_tokens=16, salt=b"secret")
    assert request.body_for_engine(body) == (body,)


async def test_a_form_gets_no_salt() -> None:
    async with served(**KEYED) as gateway:
        gateway.client.headers.update(bearer("key-a"))
        assert (await ask(gateway, "/v1/audio/transcriptions")).status_code == 200
        assert b"cache_salt" not in gateway.engines[0].requests[0].body
