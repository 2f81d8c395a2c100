"""Sessions as the gateway sees them: who they are, how their answers end by every API, and what operators are shown."""

from __future__ import annotations

import json
from typing import Any

import pytest

from router.gateway.apis import CHAT, COMPLETIONS, MESSAGES, RESPONSES, find
from router.gateway.observe import ObservedAnswer
from router.gateway.stream_observer import StreamObserver
from router.types import Stop
from tests.support.fake_engine import Script
from tests.support.gateway_server import BODIES, served

LONG = "What is the capital of France? " * 20
CALL = {"index": 0, "id": "c", "function": {"name": "read", "arguments": "{}"}}
TOOL_USE = {"type": "tool_use", "id": "c", "name": "read", "input": {}}
FUNCTION_CALL = {"type": "function_call", "call_id": "c", "name": "read", "arguments": "{}"}
WHOLE: list[tuple[str, dict[str, Any], Stop, str | None]] = [
    (CHAT, {"choices": [{"message": {"content": "x"}, "finish_reason": "stop"}]}, Stop.END_OF_TURN, None),
    (CHAT, {"choices": [{"message": {"content": "x"}, "finish_reason": "length"}]}, Stop.LENGTH, None),
    (CHAT, {"choices": [{"message": {"tool_calls": [CALL]}, "finish_reason": "tool_calls"}]}, Stop.TOOL_CALL, "read"),
    (CHAT, {"choices": [{"message": {"tool_calls": [CALL]}, "finish_reason": "stop"}]}, Stop.TOOL_CALL, "read"),
    (CHAT, {"choices": [{"message": {"content": "x"}, "finish_reason": "abort"}]}, Stop.UNKNOWN, None),
    (CHAT, {"choices": [{"message": {"content": "x"}, "finish_reason": ["stop"]}]}, Stop.UNKNOWN, None),
    (COMPLETIONS, {"choices": [{"text": "x", "finish_reason": "stop"}]}, Stop.END_OF_TURN, None),
    (MESSAGES, {"type": "message", "content": [], "stop_reason": "end_turn"}, Stop.END_OF_TURN, None),
    (MESSAGES, {"type": "message", "content": [], "stop_reason": "max_tokens"}, Stop.LENGTH, None),
    (
        MESSAGES,
        {
            "type": "message",
            "content": [TOOL_USE],
            "stop_reason": "tool_use",
        },
        Stop.TOOL_CALL,
        "read",
    ),
    (RESPONSES, {"status": "completed", "output": []}, Stop.END_OF_TURN, None),
    (RESPONSES, {"status": "incomplete", "output": []}, Stop.LENGTH, None),
    (
        RESPONSES,
        {
            "status": "completed",
            "output": [FUNCTION_CALL],
        },
        Stop.TOOL_CALL,
        "read",
    ),
]


@pytest.mark.parametrize(("route", "document", "stop", "tool"), WHOLE)
def test_how_an_answer_ended_is_read_from_every_api(
    route: str, document: dict[str, Any], stop: Stop, tool: str | None
) -> None:
    answer = find(route).answer()
    answer.read(document)
    assert (answer.stop, answer.tool) == (stop, tool)


@pytest.mark.parametrize(
    ("deltas", "stop", "tool"),
    [
        ([({"content": "x"}, None), ({"content": ""}, "stop")], Stop.END_OF_TURN, None),
        ([({"content": "x"}, "length")], Stop.LENGTH, None),
        ([({"tool_calls": [CALL]}, None), ({}, "tool_calls")], Stop.TOOL_CALL, "read"),
        ([({"content": "x"}, None)], Stop.UNKNOWN, None),
    ],
)
def test_and_from_streams(deltas: list[tuple[dict[str, Any], str | None]], stop: Stop, tool: str | None) -> None:
    answer = ObservedAnswer()
    observer = StreamObserver(answer, hide_usage=False)
    for delta, reason in [({"role": "assistant", "content": ""}, None), *deltas]:
        chunk = {"choices": [{"index": 0, "delta": delta, "finish_reason": reason}]}
        observer.feed(b"data: " + json.dumps(chunk).encode() + b"\n\n")
    observer.read_rest()
    assert (answer.stop, answer.tool) == (stop, tool)


def test_messages_tell_it_at_the_end_of_a_stream() -> None:
    answer = find(MESSAGES).answer()
    answer.read({"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 3}})
    answer.read({"type": "message_delta", "delta": 5})
    assert answer.stop is Stop.END_OF_TURN


async def test_operators_see_the_sessions() -> None:
    script = Script(tool_call={"name": "read", "arguments": "{}"})
    async with served(script, Script(tool_call={"name": "read", "arguments": "{}"})) as gateway:
        turns: list[dict[str, Any]] = [{"role": "user", "content": LONG}]
        for _ in range(3):
            answer = await gateway.client.post(
                CHAT, json={"model": "tiny", "messages": turns}, headers={"x-claude-code-session-id": "mine"}
            )
            turns += [answer.json()["choices"][0]["message"], {"role": "tool", "tool_call_id": "c", "content": LONG}]
        await gateway.post()
        found = (await gateway.client.get("/sessions?limit=5")).json()
        assert (found["known"], found["running"], len(found["sessions"])) == (2, 0, 2)
        session = found["sessions"][1]
        assert (session["name"], session["requests"], session["last_ending"]) == ("mine", 3, "tool_call")
        assert (session["last_tool"], session["cached_tokens"]) == ("read", 43)
        assert session["predicted_return_s"] > 0
        assert session["return_error"] is not None
        assert found["sessions"][0]["name"] is None
        assert gateway.value("leafcutter_sessions") == 2
        assert gateway.value("leafcutter_session_return_error") > 0
        request_id = answer.headers["x-request-id"]
        decision = (await gateway.client.get(f"/explain/{request_id}")).json()["decisions"][0]
        assert (decision["conversation"], decision["session"]) == (session["session"], "mine")
        assert (decision["outcome"]["stop"], decision["outcome"]["tool"]) == ("tool_call", "read")
        dry = await gateway.client.post("/explain", json={"model": "tiny", "messages": turns, "session_id": "mine"})
        assert dry.json()["conversation"] == session["session"]
        assert (await gateway.client.get("/sessions?limit=0")).status_code == 400


@pytest.mark.parametrize("name", ["x-session-id", "x-claude-code-session-id", "x-session-affinity", "session-id"])
async def test_clients_name_their_session_in_many_ways(name: str) -> None:
    async with served() as gateway:
        await gateway.client.post(CHAT, json=BODIES[CHAT], headers={name: "mine"})
        await gateway.client.post(CHAT, json={**BODIES[CHAT], "prompt_cache_key": "mine"})
        found = (await gateway.client.get("/sessions")).json()["sessions"]
        assert [(each["name"], each["requests"]) for each in found] == [("mine", 2)]


async def test_a_sub_agent_stands_under_its_parent_and_an_end_is_heard() -> None:
    async with served() as gateway:

        async def ask(**headers: str) -> None:
            sent = {f"x-dynamo-{key.replace('_', '-')}": value for key, value in headers.items()}
            await gateway.client.post(CHAT, json=BODIES[CHAT], headers=sent)

        await ask(session_id="main")
        await ask(session_id="helper", parent_session_id="main")
        found = (await gateway.client.get("/sessions")).json()["sessions"]
        assert [(each["name"], each["parent"]) for each in found] == [("helper", found[1]["session"]), ("main", None)]
        await ask(session_id="helper", session_final="true")
        found = (await gateway.client.get("/sessions")).json()["sessions"]
        assert [each["name"] for each in found] == ["main"]


async def test_engines_get_the_id_of_the_session_in_place_of_the_clients_name() -> None:
    async with served() as gateway:
        for sent in ({"x-session-id": "mine"}, {"x-session-id": "mine"}, {}):
            await gateway.client.post(CHAT, json=BODIES[CHAT], headers=sent)
        await gateway.client.post("/v1/embeddings", json={"model": "tiny", "input": "x"}, headers={"x-session-id": "e"})
        mine, again, other, none = [each.headers.get("x-session-id") for each in gateway.engines[0].requests]
        ids = {each["name"]: each["session"] for each in (await gateway.client.get("/sessions")).json()["sessions"]}
        assert (mine, again, other) == (ids["mine"], ids["mine"], ids[None])
        assert none == "e"  # it is no conversation, and its header is its own business
