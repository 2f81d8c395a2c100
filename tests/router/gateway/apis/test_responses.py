from __future__ import annotations

from typing import Any

import pytest

from router.errors import BadRequest
from router.gateway.apis import CHAT, RESPONSES
from router.gateway.openai_request import OpenAIRequest
from tests.support.conversations import LONG, continued, observed, read

USER = {"role": "user", "content": LONG}
REPLY = "The capital of France is Paris. " * 10
FUNCTION = {"name": "search", "description": "d", "parameters": {"type": "object"}}
REASONING = {
    "type": "reasoning",
    "id": "rs_1",
    "summary": [],
    "content": [{"type": "reasoning_text", "text": "Hm. " * 9}],
}
CALL = {
    "type": "function_call",
    "id": "fc_1",
    "call_id": "c1",
    "status": "completed",
    "name": "search",
    "arguments": '{"query":"' + "Paris " * 20 + '"}',
}
CUSTOM = {"type": "custom_tool_call", "id": "ctc_1", "call_id": "c2", "name": "patch", "input": "*** Begin " * 20}


def item(text: str) -> dict[str, Any]:
    content: list[Any] = [{"type": "output_text", "text": text, "annotations": [], "logprobs": None}]
    return {"id": "msg_1", "type": "message", "role": "assistant", "status": "completed", "content": content}


def ask(given: object, **fields: Any) -> OpenAIRequest:
    return read(RESPONSES, {"model": "m", "input": given, **fields})


def keys(given: object, **fields: Any) -> tuple[int, ...]:
    return ask(given, **fields).parsed.prompt.keys


def test_what_routing_needs_is_read() -> None:
    request = ask(LONG, stream=True, max_output_tokens=9, user="u")
    parsed = request.parsed
    assert (parsed.model, parsed.stream, parsed.max_tokens, parsed.session) == ("m", True, 9, "u")
    assert (request.edit, request.hide_usage) == (None, False)  # usage is always told


def test_the_same_conversation_is_the_same_prompt_by_either_api() -> None:
    system = {"role": "system", "content": "Be brief. " * 20}
    turns = [USER, {"role": "assistant", "content": REPLY}, USER]
    tools = [{"type": "function", "function": FUNCTION}]
    chat = read(CHAT, {"model": "m", "tools": tools, "messages": [system, *turns]})
    flat = [{"type": "function", **FUNCTION}]
    assert keys(turns, instructions=system["content"], tools=flat) == chat.parsed.prompt.keys
    assert keys([USER, item(REPLY), USER], instructions=system["content"], tools=tools) == chat.parsed.prompt.keys
    assert keys(LONG) == keys([USER]) == keys([{"role": "user", "content": [{"type": "input_text", "text": LONG}]}])


def test_what_differs_is_kept_apart() -> None:
    image = {"type": "input_image", "image_url": "data:image/png;base64,AAAA"}
    others: list[dict[str, Any]] = [
        {"instructions": "x" * 20},
        {"cache_salt": "s"},
        {"tools": [{"type": "function", **FUNCTION}]},
        {"tools": [{"type": "function", **FUNCTION}], "tool_choice": "none"},
        {"tools": [{"type": "web_search"}]},
        {"reasoning": {"effort": "high"}},
        {"previous_response_id": "resp_1"},
        {"previous_response_id": "resp_2"},
        {"prompt": {"id": "p"}},
        {"input": [{"role": "user", "content": [image, {"type": "input_text", "text": LONG}]}]},
        {"input": [{"type": "item_reference", "id": "x"}, USER]},
    ]
    found = [read(RESPONSES, {"model": "m", "input": LONG, **fields}).parsed.prompt.keys[0] for fields in others]
    assert len({keys(LONG)[0], *found}) == len(found) + 1


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({}, "input"),
        ({"input": 3}, "input"),
        ({"input": {"a": 1}}, "input"),
        ({"input": ["a"]}, "input[0]"),
    ],
)
def test_what_no_engine_could_read_is_refused(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(BadRequest) as caught:
        read(RESPONSES, fields)
    assert caught.value.param == param


@pytest.mark.parametrize(
    "odd",
    [
        {"input": []},
        {"input": [{}]},
        {"input": [{"type": 3}]},
        {"input": [{"type": ["message"]}]},
        {"input": [{"role": "assistant", "content": [3, {"text": 4}]}]},
        {"input": [{"type": "reasoning", "content": 3}, {"type": "reasoning"}]},
        {"input": [{"type": "function_call"}, {"type": "function_call_output", "output": {"a": 1}}]},
        {"input": [{"role": "user", "content": "\ud800"}]},
        {"instructions": 3},
        {"instructions": [{"role": "user"}]},
        {"tools": {"a": 1}},
        {"tools": [3]},
        {"reasoning": "high"},
        {"max_output_tokens": 10**400},
    ],
)
def test_odd_bodies_pass_to_the_engine_which_judges_them(odd: dict[str, Any]) -> None:
    assert read(RESPONSES, {"input": LONG, **odd}).edit is None


# --- answers ----------------------------------------------------------------------------------------------------------


def response(*output: dict[str, Any], **fields: Any) -> dict[str, Any]:
    details = {"cached_tokens": 32}
    usage = {"input_tokens": 40, "input_tokens_details": details, "output_tokens": 3, "total_tokens": 43}
    head = {"id": "resp_1", "object": "response", "status": "completed", "error": None}
    return {**head, "output": list(output), "usage": usage, **fields}


def stream(*output: dict[str, Any], end: str = "response.completed", **fields: Any) -> list[dict[str, Any]]:
    return [
        {"type": "response.created", "response": response(status="in_progress", usage=None)},
        {"type": "response.output_item.added", "item": {}},
        {"type": "response.output_text.delta", "delta": "The"},
        {"type": "response.output_text.delta", "delta": " end"},
        {"type": "response.output_text.done", "text": "The end"},
        {"type": end, "response": response(*output, **fields)},
    ]


@pytest.mark.parametrize(
    "output", [[item(REPLY)], [REASONING, item(REPLY)], [item(REPLY), CALL], [REASONING, CALL, CUSTOM]]
)
@pytest.mark.parametrize("streamed", [True, False])
def test_the_next_turn_matches_the_reply(output: list[dict[str, Any]], streamed: bool) -> None:
    first = ask([USER])
    answer = observed(first, *(stream(*output) if streamed else [response(*output)]))
    result = {"type": "function_call_output", "call_id": "c1", "output": "found"}
    assert continued(first, answer, ask([USER, *output, result, USER]))
    assert not continued(first, answer, ask([USER, item("Other."), USER]))
    if output == [item(REPLY)]:
        assert continued(first, answer, ask([USER, {"role": "assistant", "content": REPLY}, USER]))


def test_a_second_turn_of_the_model_is_a_message_of_its_own() -> None:
    together = keys([USER, item(LONG), CALL])
    assert together == keys([USER, CALL, item(LONG)])  # one message has both
    assert together != keys([USER, item(LONG), item(LONG), CALL])
    assert keys([USER, CALL, REASONING]) != keys([USER, REASONING, CALL])


@pytest.mark.parametrize("end", ["response.completed", "response.incomplete", "response.cancelled"])
def test_usage_and_the_end_of_a_stream(end: str) -> None:
    answer = observed(ask(LONG), *stream(item(REPLY), end=end))
    usage = answer.usage
    assert (usage.prompt_tokens, usage.cached_tokens, usage.output_tokens) == (40, 32, 3)
    assert (answer.started, answer.done, answer.failed, answer.tokens) == (True, True, False, 2)


@pytest.mark.parametrize(
    ("error", "done"),
    [
        ({"type": "error", "message": "m"}, False),
        ({"type": "response.failed", "response": response(status="failed")}, True),
        ({"error": {"message": "m"}}, False),
        (response(error={"message": "m"}), False),
    ],
)
def test_errors_are_noticed(error: dict[str, Any], done: bool) -> None:
    answer = observed(ask(LONG), error)
    assert (answer.failed, answer.done, answer.started) == (True, done, False)


def test_events_of_unknown_shapes_are_ignored() -> None:
    answer = observed(
        ask(LONG), {"type": "response.completed"}, {"type": 3}, {"output": 3, "usage": 3}, {"output": [3]}
    )
    assert (answer.failed, answer.done, answer.message.fields()) == (False, True, {"role": "assistant"})
