"""Every route over real sockets: they are booked, counted, retried and cancelled alike."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import anthropic
import httpx
import openai
import pytest

from router.gateway.apis import CHAT, MESSAGES, RESPONSES, TABLE
from tests.support.fake_engine import MODEL, REFUSAL, Script
from tests.support.gateway_server import Served, events, served, until

TEXT = "The capital of France is Paris. " * 30
FIELDS: dict[str, Any] = {
    "model": MODEL,
    "messages": [{"role": "user", "content": TEXT}],
    "input": TEXT,
    "prompt": TEXT,
    "query": TEXT,
    "documents": [TEXT],
    "tokens": [1, 2],
    "max_tokens": 9,
}
STREAMS = [RESPONSES, MESSAGES]
PASSED = "/v1/responses/{response_id}"


async def ask(gateway: Served, route: str, **fields: Any) -> httpx.Response:
    if "/audio/" in route:
        form = {"model": MODEL, **{name: str(value) for name, value in fields.items()}}
        return await gateway.client.post(route, data=form, files={"file": ("a.wav", b"RIFF" * 1000)})
    return await gateway.client.post(route, json={**FIELDS, **fields})


@pytest.mark.parametrize("route", TABLE)
async def test_every_route_is_booked_and_counted(route: str) -> None:
    async with served(Script(), Script(), policy="lbgr") as gateway:
        response = await ask(gateway, route)
        assert response.status_code == 200
        engine = gateway.engines[int(response.headers["x-leafcutter-engine"][-1])]
        assert engine.requests[0].path == route
        await gateway.ended("ok")
        assert gateway.value("leafcutter_requests_total", route=route, ending="ok") == 1
        generates = TABLE[route].generates
        assert gateway.value("leafcutter_prediction_error_seconds_count") == float(generates)
        (entry,) = gateway.router.newest_decisions(1)
        assert entry.result is not None
        assert gateway.router.index_blocks > 0 or route not in (CHAT, *STREAMS)
        assert gateway.router.index_blocks == 0 or route in (CHAT, "/v1/completions", *STREAMS)


@pytest.mark.parametrize("route", TABLE)
async def test_bodies_pass_untouched(route: str) -> None:
    async with served() as gateway:
        body = json.dumps({**FIELDS, "new": [1, "caf\u00e9"]}, indent=1).encode()
        response = await gateway.client.post(f"{route}?a=1", content=body, headers={"content-type": "application/json"})
        assert response.status_code == 200
        (request,) = gateway.engines[0].requests
        assert (request.path, request.body) == (f"{route}?a=1", body)


@pytest.mark.parametrize("route", TABLE)
async def test_every_route_is_retried(route: str) -> None:
    busy = Script(status=503, error=REFUSAL)
    async with served(busy, Script(), policy="round_robin") as gateway:
        for _ in range(2):
            assert (await ask(gateway, route)).status_code == 200
        await gateway.ended("ok", 2)
        assert gateway.value("leafcutter_retries_total", reason="busy") >= 1


@pytest.mark.parametrize("route", TABLE)
async def test_every_route_stops_its_engine_when_the_client_leaves(route: str) -> None:
    async with served(Script(fault="hang")) as gateway:
        waiting = asyncio.create_task(ask(gateway, route))
        await gateway.engines[0].arrived.wait()
        waiting.cancel()
        await gateway.ended("cancelled")
        await until(lambda: gateway.engines[0].cancelled == 1)


@pytest.mark.parametrize("route", STREAMS)
async def test_streams_pass_byte_for_byte(route: str) -> None:
    async with served() as gateway:
        direct = await gateway.client.post(gateway.engines[0].url + route, json={**FIELDS, "stream": True})
        response = await ask(gateway, route, stream=True)
        assert response.content == direct.content
        assert response.headers["x-accel-buffering"] == "no"
        await gateway.ended("ok")
        assert gateway.value("leafcutter_ttft_seconds_count", route=route) == 1
        assert gateway.value("leafcutter_prompt_tokens_total") == 40
        assert gateway.value("leafcutter_cached_tokens_total") == 32
        assert gateway.value("leafcutter_output_tokens_total") == 3


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("route", [CHAT, *STREAMS])
async def test_a_conversation_stays_with_the_engine_that_holds_it(route: str, stream: bool) -> None:
    first = {"role": "user", "content": TEXT}
    async with served(*[Script(prompt_tokens=240, cached_tokens=0)] * 3, policy="lbgr") as gateway:

        def turn(turns: list[dict[str, Any]]) -> Any:
            return ask(gateway, route, messages=turns, input=turns, stream=stream)

        home = (await turn([first])).headers["x-leafcutter-engine"]
        for engine in gateway.engines:
            engine.script = Script(prompt_tokens=300, cached_tokens=240)
        turns = [first, {"role": "assistant", "content": "The capital of France is Paris."}, first]
        for _ in range(3):
            assert (await turn(turns)).headers["x-leafcutter-engine"] == home


@pytest.mark.parametrize("done", [True, False])
@pytest.mark.parametrize("route", STREAMS)
async def test_a_stream_that_breaks_ends_with_an_error_event_of_its_form(route: str, done: bool) -> None:
    script = Script(done=False) if done else Script(fault="cut", after=4)
    async with served(script) as gateway:
        response = await ask(gateway, route, stream=True)
        last = response.content.split(b"\n\n")[-2]
        assert last.startswith(b"event: error\ndata: ")
        document = events(response.content)[-1]
        assert isinstance(document, dict)
        assert document["type"] == "error"
        if route == MESSAGES:
            error = {"type": "api_error", "message": "The engine broke off its answer."}
            assert document["error"] == error if done else document["error"]["type"] == "api_error"
        else:
            assert document["code"] == document["error"]["code"] == "engine_lost"
            assert document["message"] == document["error"]["message"]
        await gateway.ended("engine_lost")


async def test_the_official_clients_raise_when_a_stream_breaks() -> None:
    async with served(Script(done=False)) as gateway:
        async with openai.AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key="k", max_retries=0) as of_openai:
            with pytest.raises(openai.APIError, match="broke off"):
                async for _ in await of_openai.responses.create(model=MODEL, input="Hello", stream=True):
                    pass
        async with anthropic.AsyncAnthropic(base_url=gateway.url, api_key="k", max_retries=0) as of_anthropic:
            with pytest.raises(anthropic.APIError, match="broke off"):
                async for _ in await of_anthropic.messages.create(
                    model=MODEL, max_tokens=9, messages=[{"role": "user", "content": "Hello"}], stream=True
                ):
                    pass
        await gateway.ended("engine_lost", 2)


async def test_the_official_clients_read_calls_of_tools() -> None:
    call = {"name": "search", "arguments": '{"query": "Paris"}'}
    async with served(Script(tool_call=call)) as gateway:
        async with openai.AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key="k", max_retries=0) as of_openai:
            answer = await of_openai.responses.create(model=MODEL, input="Hello")
            assert answer.output[0].type == "function_call"
            assert answer.output[0].arguments == call["arguments"]
        async with (
            anthropic.AsyncAnthropic(base_url=gateway.url, api_key="k", max_retries=0) as of_anthropic,
            of_anthropic.messages.stream(
                model=MODEL, max_tokens=9, messages=[{"role": "user", "content": "Hello"}]
            ) as stream,
        ):
            message = await stream.get_final_message()
            assert message.content[0].type == "tool_use"
            assert message.content[0].input == {"query": "Paris"}
        await gateway.ended("ok", 2)


@pytest.mark.parametrize("route", STREAMS)
async def test_an_error_of_the_engine_inside_a_stream_passes(route: str) -> None:
    async with served(Script(error=REFUSAL)) as gateway:
        response = await ask(gateway, route, stream=True)
        assert response.content.count(b"event: error") == 1
        await gateway.ended("rejected")


async def test_streams_of_unknown_events_end_where_they_end() -> None:
    async with served(Script(done=False), allow_paths=["/v1/other"]) as gateway:
        response = await ask(gateway, "/v1/other", stream=True)
        assert b"error" not in response.content
        await gateway.ended("ok")


# --- errors -----------------------------------------------------------------------------------------------------------


async def test_errors_on_messages_have_anthropics_form() -> None:
    async with served(api_key="k", max_payload_size=20_000, first_byte_timeout_secs=0.3) as gateway:
        client, key = gateway.client, {"x-api-key": "k"}

        async def error(answer: httpx.Response, status: int) -> dict[str, Any]:
            assert answer.status_code == status
            document = answer.json()
            assert (document["type"], set(document["error"])) == ("error", {"type", "message"})
            return dict(document["error"])

        asked = {**FIELDS, "messages": []}
        assert (await error(await client.post(MESSAGES, json=asked), 401))["type"] == "authentication_error"
        answer = await client.post(MESSAGES, json={}, headers=key)
        assert (await error(answer, 400))["type"] == "invalid_request_error"
        answer = await client.post(MESSAGES, json={**asked, "model": "nope"}, headers=key)
        assert "nope" in (await error(answer, 404))["message"]
        answer = await client.post(MESSAGES + "/count_tokens", content=b"x" * 20_001, headers=key)
        assert (await error(answer, 413))["type"] == "request_too_large"
        answer = await client.get(MESSAGES, headers=key)
        assert (await error(answer, 404))["type"] == "not_found_error"
        answer = await client.post(MESSAGES + "/batches", headers=key)
        assert (await error(answer, 404))["type"] == "not_found_error"
        gateway.engines[0].script = Script(fault="hang")
        answer = await client.post(MESSAGES, json=asked, headers=key)
        assert (await error(answer, 504))["type"] == "timeout_error"
        await gateway.engines[0].stop()
        answer = await client.post(MESSAGES, json=asked, headers=key)
        assert (await error(answer, 502))["type"] == "api_error"
        answer = await client.post(MESSAGES, json=asked, headers=key)
        assert (await error(answer, 503))["type"] == "overloaded_error"
        answer = await client.post("/v1/messagesx", headers=key)
        assert answer.json()["error"]["code"] == "unknown_url"


async def test_what_an_engine_says_passes_as_it_is() -> None:
    async with served(Script(status=503, error=REFUSAL)) as gateway:
        response = await ask(gateway, MESSAGES)
        assert (response.status_code, response.json()) == (503, {"error": REFUSAL})


# --- keys -------------------------------------------------------------------------------------------------------------


async def test_anthropics_clients_show_their_key_in_a_header_of_their_own() -> None:
    async with served(api_key="k", worker_api_key="inner") as gateway:
        for headers in ({"x-api-key": "k"}, {"authorization": "Bearer k"}):
            assert (await gateway.client.post(MESSAGES, json=FIELDS, headers=headers)).status_code == 200
        for headers in ({"x-api-key": "kk"}, {"x-api-key": ""}, {"x-api-key": "Bearer k"}):
            assert (await gateway.client.post(MESSAGES, json=FIELDS, headers=headers)).status_code == 401
        for request in gateway.engines[0].requests:
            assert request.headers["authorization"] == "Bearer inner"
            assert "x-api-key" not in request.headers


# --- models and aliases -----------------------------------------------------------------------------------------------


async def test_models_by_name() -> None:
    aliases = [f"gpt-4o={MODEL}", f"org/alias={MODEL}", "gone=missing"]
    async with served(model_alias=aliases) as gateway:
        listed = (await gateway.client.get("/v1/models")).json()["data"]
        assert {each["id"]: each["root"] for each in listed} == dict.fromkeys((MODEL, "gpt-4o", "org/alias"), MODEL)
        for each in listed:
            assert (await gateway.client.get(f"/v1/models/{each['id']}")).json() == each
        assert (await gateway.client.get("/v1/models/org%2Falias")).json()["id"] == "org/alias"
        for name in ("missing", "gone", "", "tiny/"):
            answer = await gateway.client.get(f"/v1/models/{name}", follow_redirects=False)
            assert answer.status_code in (404, 307) if not name else answer.status_code == 404
        error = (await gateway.client.get("/v1/models/missing")).json()["error"]
        assert (error["code"], error["type"], error["param"]) == ("model_not_found", "invalid_request_error", "model")


@pytest.mark.parametrize("route", TABLE)
async def test_an_alias_reaches_the_engine_as_its_model(route: str) -> None:
    async with served(model_alias=[f"gpt-4o={MODEL}"]) as gateway:
        assert (await ask(gateway, route, model="gpt-4o")).status_code == 200
        assert (await ask(gateway, route, model="nope")).status_code == 404
        (request,) = gateway.engines[0].requests
        assert MODEL.encode() in request.body
        assert b"gpt-4o" not in request.body


# --- paths that the operator opens ------------------------------------------------------------------------------------


async def test_opened_paths_pass_and_are_counted_by_their_template() -> None:
    async with served(allow_paths=[PASSED, "/version"]) as gateway:
        client = gateway.client
        for method, path, content in (
            ("GET", "/v1/responses/resp_1?a=1", b""),
            ("DELETE", "/v1/responses/resp_2", b""),
            ("POST", "/v1/responses/resp_3", b"\x00 no JSON"),
            ("PUT", "/version", b"[1]"),
        ):
            assert (await client.request(method, path, content=content)).status_code == 200
            request = gateway.engines[0].requests[-1]
            assert (request.method, request.path, request.body) == (method, path, content)
        await gateway.ended("ok", 4)
        assert gateway.value("leafcutter_requests_total", route=PASSED) == 3
        answer = await client.post("/version", json={"model": "nope"})
        assert answer.json()["error"]["code"] == "model_not_found"
        for path in ("/v1/responses/..", "/v1/responses/a%2Fb", "/sleep", "/v1/responses/"):
            assert (await client.get(path)).status_code == 404
        assert len(gateway.engines[0].requests) == 4
