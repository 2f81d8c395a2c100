"""Answers and refusals over real sockets; after each, its booking is gone and its ending is counted."""

from __future__ import annotations

import asyncio
import json
import logging
import re
from collections.abc import AsyncIterator

import pytest

from router.core.options import POLICIES
from tests.support.fake_engine import REFUSAL, Script
from tests.support.gateway_server import BODIES, CHAT, COMPLETIONS, KINDS, error_of, events, served, text_of, until


@pytest.mark.parametrize(("route", "stream"), KINDS)
async def test_answers(route: str, stream: bool) -> None:
    async with served() as gateway:
        response = await gateway.post(route, stream=stream)
        assert response.status_code == 200
        assert response.headers["x-leafcutter-engine"] == "engine-0"
        assert response.headers["x-leafcutter-policy"] == "least_loaded"
        assert response.headers["x-leafcutter-reason"] == "only_engine"
        assert response.headers["x-request-id"] == gateway.engines[0].requests[0].headers["x-request-id"]
        if stream:
            assert text_of(route, response.content) == "The capital of France is Paris."
            assert events(response.content)[-1] == "[DONE]"
            assert response.headers["x-accel-buffering"] == "no"
            assert response.headers["cache-control"] == "no-cache"
        else:
            assert "Paris" in response.text
        await gateway.ended("ok")
        assert gateway.value("leafcutter_ttft_seconds_count", route=route) == float(stream)
        assert gateway.value("leafcutter_prompt_tokens_total", engine="engine-0") == 40
        assert gateway.value("leafcutter_cached_tokens_total", engine="engine-0") == 32
        assert gateway.value("leafcutter_output_tokens_total", engine="engine-0") == 3
        assert gateway.value("leafcutter_decision_seconds_count") == 1
        assert gateway.value("leafcutter_request_seconds_count", route=route) == 1


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("stream", [False, True])
async def test_every_policy_serves(policy: str, stream: bool) -> None:
    async with served(Script(), Script(), policy=policy) as gateway:
        for _ in range(5):
            response = await gateway.post(stream=stream)
            assert response.status_code == 200
        predicts = "x-leafcutter-predicted-ms" in response.headers
        assert predicts is (policy in ("lbgr", "lbgr_paper"))
        assert gateway.value("leafcutter_prediction_error_seconds_count") == (5 if predicts else 0)
        assert gateway.router.status().faults == 0
        await gateway.ended("ok", 5)


async def test_a_conversation_stays_with_the_engine_that_holds_it() -> None:
    first = {"role": "user", "content": "Tell me all about Paris. " * 100}
    async with served(*[Script(prompt_tokens=700, cached_tokens=0)] * 3, policy="lbgr") as gateway:
        answer = await gateway.post(messages=[first])
        home = answer.headers["x-leafcutter-engine"]
        for engine in gateway.engines:
            engine.script = Script(prompt_tokens=720, cached_tokens=690)
        turns = [first, answer.json()["choices"][0]["message"], {"role": "user", "content": "And then?"}]
        for _ in range(3):
            assert (await gateway.post(messages=turns)).headers["x-leafcutter-engine"] == home


@pytest.mark.parametrize("route", [CHAT, COMPLETIONS])
async def test_usage_is_hidden_only_from_those_who_did_not_ask(route: str) -> None:
    async with served() as gateway:
        silent = await gateway.post(route, stream=True)
        asked = await gateway.post(route, stream=True, stream_options={"include_usage": True})
        running = await gateway.post(
            route, stream=True, stream_options={"include_usage": True, "continuous_usage_stats": True}
        )
        assert b"usage" not in silent.content
        assert sum(b'"usage"' in e for e in asked.content.split(b"\n\n")) == 1
        assert sum(b'"usage"' in e for e in running.content.split(b"\n\n")) > 3
        sent = [request.json.get("stream_options") for request in gateway.engines[0].requests]
        assert sent == [{"include_usage": True}] * 2 + [{"include_usage": True, "continuous_usage_stats": True}]
        await gateway.ended("ok", 3)


async def test_bodies_and_headers_pass_untouched() -> None:
    body = (
        b'{ "model":"tiny","messages":[{"role":"user","content":"caf\\u00e9 \xe2\x98\x95"}],"temperature":1.0e-0,\n'
        b'"vllm_xargs":{"a":[1,2.50]},"priority":-1,"cache_salt":"s","return_token_ids":true,"top_k":20,"new":NaN}'
    )
    headers = {"x-custom": "kept", "traceparent": "00-1", "authorization": "Bearer mine", "connection": "x-hop"}
    answered = {"openai-processing-ms": "7", "keep-alive": "timeout=9", "x-engine": "secret", "set-cookie": "a=b"}
    answered |= {"location": "http://10.0.0.1", "access-control-allow-origin": "*", "retry-after": "3"}
    async with served(Script(headers=answered)) as gateway:
        response = await gateway.client.post(f"{CHAT}?a=1", content=body, headers={**headers, "x-hop": "dropped"})
        request = gateway.engines[0].requests[0]
        assert request.body == body
        assert request.path == f"{CHAT}?a=1"
        got = request.headers
        assert got.items() >= {("x-custom", "kept"), ("traceparent", "00-1"), ("authorization", "Bearer mine")}
        assert got["accept-encoding"] == "identity"
        assert "x-hop" not in got
        assert (response.headers["openai-processing-ms"], response.headers["retry-after"]) == ("7", "3")
        assert not (set(answered) - {"openai-processing-ms", "retry-after"}) & set(response.headers)
        assert not {"date", "server"} & set(response.headers)  # the gateway's own server adds these


async def test_what_is_between_client_and_gateway_goes_no_further() -> None:
    secrets = {"Cookie": "a=b", "X-API-Key": "k", "X-Leafcutter-Route": "x", "X-LEAFCUTTER-anything": "y"}
    async with served() as gateway:
        await gateway.client.post(CHAT, json=BODIES[CHAT], headers=secrets)
        assert not {name.lower() for name in secrets} & set(gateway.engines[0].requests[0].headers)


async def test_the_engines_key_replaces_the_clients() -> None:
    async with served(worker_api_key="inner") as gateway:
        await gateway.client.post(CHAT, json=BODIES[CHAT], headers={"authorization": "Bearer outer"})
        assert gateway.engines[0].requests[0].headers["authorization"] == "Bearer inner"


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ({"x-request-id": "abc-1"}, "abc-1"),
        ({"x-correlation-id": "c", "x-trace-id": "t"}, "c"),
        ({"x-request-id": "two words"}, None),
        ({"x-request-id": "x" * 129}, None),
        ({}, None),
    ],
)
async def test_request_ids(given: dict[str, str], kept: str | None) -> None:
    async with served() as gateway:
        response = await gateway.client.post(CHAT, json=BODIES[CHAT], headers=given)
        used = response.headers["x-request-id"]
        assert used == kept if kept else used not in given.values()
        assert gateway.engines[0].requests[0].headers["x-request-id"] == used


@pytest.mark.parametrize("stream", [False, True])
async def test_an_engines_refusal_passes_through(stream: bool) -> None:
    async with served(Script(status=400, error=REFUSAL)) as gateway:
        response = await gateway.post(stream=stream)
        assert response.status_code == 400
        assert error_of(response) == REFUSAL
        await gateway.ended("rejected")


async def test_an_error_inside_a_stream_passes_through() -> None:
    async with served(Script(error=REFUSAL)) as gateway:
        response = await gateway.post(stream=True)
        assert {"error": REFUSAL} in events(response.content)
        await gateway.ended("rejected")


@pytest.mark.parametrize(
    ("body", "param"),
    [
        (b"{", None),
        (b"[]", None),
        (b"[" * 100_000, None),
        (b"\xff\xff", None),
        (b'{"model": "tiny"}', "messages"),
        (b'{"model": 1, "messages": []}', "model"),
    ],
)
async def test_bad_bodies_never_reach_an_engine(body: bytes, param: str | None) -> None:
    async with served() as gateway:
        response = await gateway.client.post(CHAT, content=body)
        assert response.status_code == 400
        error = error_of(response)
        assert (error["type"], error["param"]) == ("invalid_request_error", param)
        assert response.headers["x-request-id"]
        assert not gateway.engines[0].requests
        await gateway.ended("rejected")
        assert gateway.value("leafcutter_requests_total", engine="none") == 1


async def test_an_unknown_model_is_not_found() -> None:
    async with served() as gateway:
        response = await gateway.post(model="other")
        assert (response.status_code, error_of(response)["code"]) == (404, "model_not_found")
        await gateway.ended("rejected")


async def test_no_healthy_engine() -> None:
    async with served() as gateway:
        gateway.router.set_health(gateway.router._fleet.ids()[0], False)
        response = await gateway.post()
        assert (response.status_code, error_of(response)["code"]) == (503, "no_available_workers")
        assert response.headers["retry-after"]
        await gateway.ended("rejected")


@pytest.mark.parametrize("length_told", [True, False])
async def test_too_large_a_body(length_told: bool) -> None:
    body = json.dumps(BODIES[CHAT]).encode()

    async def pieces() -> AsyncIterator[bytes]:
        yield body

    async with served(max_payload_size=len(body) - 1) as gateway:
        response = await gateway.client.post(CHAT, content=body if length_told else pieces())
        assert (response.status_code, error_of(response)["code"]) == (413, "payload_too_large")
        await gateway.ended("rejected")


async def test_a_large_body_passes_whole() -> None:
    content = "word " * 500_000
    async with served() as gateway:
        response = await gateway.post(messages=[{"role": "user", "content": content}])
        assert response.status_code == 200
        assert gateway.engines[0].requests[0].json["messages"][0]["content"] == content


# --- many at once ----------------------------------------------------------------------------------


async def test_two_hundred_streams_at_once_leave_nothing_behind() -> None:
    gate = asyncio.Event()
    async with served(Script(gate=gate), Script(gate=gate), Script(gate=gate)) as gateway:
        tasks = [asyncio.create_task(gateway.post(stream=True)) for _ in range(100)]
        leaving = [asyncio.create_task(gateway.post(stream=True)) for _ in range(100)]
        await until(lambda: sum(engine.running for engine in gateway.engines) == 200)
        assert gateway.value("leafcutter_in_flight") == 200
        for task in leaving:
            task.cancel()
        await asyncio.gather(*leaving, return_exceptions=True)
        await until(lambda: gateway.in_flight() == 100)
        gate.set()
        for response in await asyncio.gather(*tasks):
            assert text_of(CHAT, response.content) == "The capital of France is Paris."
        await gateway.ended("ok", 100)
        await gateway.ended("cancelled", 100)
        assert not [task for task in asyncio.all_tasks() if "Client" in str(task.get_coro())]


async def test_the_gateways_own_key_stays_with_it() -> None:
    async with served(api_key="mine") as gateway:
        response = await gateway.client.post(CHAT, json=BODIES[CHAT], headers={"authorization": "Bearer mine"})
        assert response.status_code == 200
        assert "authorization" not in gateway.engines[0].requests[0].headers


async def test_a_decision_is_explained_in_the_log_at_debug(caplog: pytest.LogCaptureFixture) -> None:
    async with served(Script(), Script(), policy="lbgr") as gateway:
        with caplog.at_level(logging.DEBUG, "leafcutter.gateway"):
            await gateway.client.post(CHAT, json=BODIES[CHAT], headers={"x-request-id": "abc"})
    assert re.search(
        r"request abc to engine-\d \(lbgr, lowest_cost; engine-0: \d+ ms = wait 0 \+ room 0 \+ prefill", caplog.text
    )


async def test_a_rank_is_not_told_as_milliseconds(caplog: pytest.LogCaptureFixture) -> None:
    async with served(Script(), policy="lmetric") as gateway:
        with caplog.at_level(logging.DEBUG, "leafcutter.gateway"):
            await gateway.client.post(CHAT, json=BODIES[CHAT], headers={"x-request-id": "abc"})
    assert re.search(
        r"request abc to engine-0 \(lmetric, only_engine; engine-0: rank \d+(\.\d+)?, 0 tokens", caplog.text
    )
