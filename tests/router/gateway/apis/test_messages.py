from __future__ import annotations

import json
from typing import Any

import pytest

from router.errors import BadRequest
from router.gateway.apis import CHAT, MESSAGES
from router.gateway.observe import ObservedAnswer
from router.gateway.openai_request import OpenAIRequest
from tests.support.conversations import LONG, continued, observed, read

USER = {"role": "user", "content": LONG}
REPLY = "The capital of France is Paris. " * 10
CALL = {"type": "tool_use", "id": "t1", "name": "search", "input": {"query": "Paris " * 20, "limit": 3}}
TOOL = {"name": "search", "description": "d", "input_schema": {"type": "object"}}


def ask(*messages: dict[str, Any], **fields: Any) -> OpenAIRequest:
    return read(MESSAGES, {"model": "m", "max_tokens": 9, "messages": list(messages), **fields})


def keys(*messages: dict[str, Any], **fields: Any) -> tuple[int, ...]:
    return ask(*messages, **fields).parsed.prompt.keys


def test_what_routing_needs_is_read() -> None:
    request = ask(USER, stream=True, metadata={"user_id": "u"})
    parsed = request.parsed
    assert (parsed.model, parsed.stream, parsed.max_tokens, parsed.session) == ("m", True, 9, "u")
    assert parsed.prompt.units > len(LONG)
    assert (request.edit, request.hide_usage) == (None, False)  # usage is always told


def test_the_same_conversation_is_the_same_prompt_by_either_api() -> None:
    system, turns = "Be brief. " * 20, [USER, {"role": "assistant", "content": REPLY}, USER]
    chat = read(CHAT, {"model": "m", "messages": [{"role": "system", "content": system}, *turns]})
    assert keys(*turns, system=system) == chat.parsed.prompt.keys
    function = {"name": "search", "description": "d", "parameters": {"type": "object"}}
    tools = [{"type": "function", "function": function}]
    chat = read(CHAT, {"model": "m", "tools": tools, "messages": [USER]})
    assert keys(USER, tools=[TOOL]) == chat.parsed.prompt.keys


def billed(nonce: str) -> dict[str, Any]:
    return {"type": "text", "text": f"x-anthropic-billing-header: cc_version=2.1; cch={nonce};"}


def test_the_number_that_a_client_puts_first_is_left_out() -> None:
    system = {"type": "text", "text": "You are Claude Code. " * 30, "cache_control": {"type": "ephemeral"}}
    one, two = (keys(USER, system=[billed(nonce), system]) for nonce in ("a1", "b2"))
    assert one == two == keys(USER, system=[system])
    assert keys(USER, system=[billed("a1")]) == keys(USER)
    inline: list[Any] = [{"role": "system", "content": [billed("a1"), system]}, USER]
    assert keys(*inline) == keys({"role": "system", "content": [system]}, USER)
    assert keys({"role": "system", "content": [billed("a1")]}, USER) == keys(USER)
    # In a system prompt that is one text, the engine drops the first line only.
    line = billed("a1")["text"] + "\n"
    assert keys(USER, system=line + system["text"]) == keys(USER, system=system["text"])
    assert keys(USER, system=[system, billed("a1")]) == keys(USER, system=[system])


def test_what_differs_is_kept_apart() -> None:
    image = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AAAA"}}
    others: list[dict[str, Any]] = [
        {"system": "x" * 20},
        {"cache_salt": "s"},
        {"tools": [TOOL]},
        {"tools": [TOOL], "tool_choice": {"type": "none"}},
        {"tools": [{"type": "web_search_1", "name": "w"}]},
        {"thinking": {"type": "disabled"}},
        {"output_config": {"effort": "high"}},
        {"chat_template_kwargs": {"a": 1}},
    ]
    found = [keys(USER, **fields)[0] for fields in others]
    found.append(keys({"role": "user", "content": [image, {"type": "text", "text": LONG}]})[0])
    found.append(keys({"role": "user", "content": [{**image, "source": {"url": "x"}}]}, USER)[0])
    assert len({keys(USER)[0], *found}) == len(found) + 1
    assert keys(USER, tools=[]) == keys(USER, tool_choice={"type": "auto"}) == keys(USER)


def test_marks_of_caching_move_without_effect() -> None:
    mark: dict[str, Any] = {"cache_control": {"type": "ephemeral"}}
    image = {"type": "image", "source": {"type": "url", "url": "x"}}
    result: dict[str, Any] = {
        "type": "tool_result",
        "tool_use_id": "t1",
        "content": [image, {"type": "text", "text": LONG}],
    }
    content: list[Any] = [{"type": "text", "text": LONG}, image, CALL]
    plain = [{"role": "user", "content": [*content, result]}]
    marked: list[Any] = [{"role": "user", "content": [*({**each, **mark} for each in content), {**result, **mark}]}]
    marked[0]["content"][3]["content"] = [{**image, **mark}, {"type": "text", "text": LONG, **mark}]
    assert keys(*plain, tools=[TOOL]) == keys(*marked, tools=[{**TOOL, **mark}])
    assert keys({"role": "user", "content": LONG}) == keys({"role": "user", "content": [{**content[0], **mark}]})


def test_results_of_tools_are_part_of_the_prompt() -> None:
    def after(result: object) -> tuple[int, ...]:
        block = {"type": "tool_result", "tool_use_id": "t1", "content": result}
        return keys(USER, {"role": "assistant", "content": [CALL]}, {"role": "user", "content": [block]})

    text = [{"type": "text", "text": LONG}]
    assert after(LONG) == after(text)
    assert after(LONG) != after("other")
    assert after(None)[: len(keys(USER))] == keys(USER)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({}, "messages"),
        ({"messages": "hello"}, "messages"),
        ({"messages": [3]}, "messages[0]"),
        ({"messages": [], "model": 3}, "model"),
    ],
)
def test_what_no_engine_could_read_is_refused(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(BadRequest) as caught:
        read(MESSAGES, fields)
    assert caught.value.param == param


@pytest.mark.parametrize(
    "odd",
    [
        {"system": 3},
        {"system": [3, {"type": "text"}, {"type": "text", "text": 3}, {"text": "a"}]},
        {"tools": {"a": 1}},
        {"tools": [3, {}]},
        {"tool_choice": "none"},
        {"thinking": 3, "output_config": []},
        {"metadata": {"user_id": 3}},
        {"messages": [{}]},
        {"messages": [{"role": "user", "content": [3, "text", None, {}, {"type": "text"}]}]},
        {"messages": [{"role": ["user"], "content": {"a": 1}}]},
        {"messages": [{"role": "user", "content": [{"type": "tool_result"}, {"type": "tool_use", "input": 3}]}]},
        {"messages": [{"role": "assistant", "content": [{"type": "thinking", "thinking": 3}]}]},
        {"messages": [{"role": "user", "content": "\ud800"}]},
        {"max_tokens": 10**400},
    ],
)
def test_odd_bodies_pass_to_the_engine_which_judges_them(odd: dict[str, Any]) -> None:
    request = read(MESSAGES, {"messages": [USER], **odd})
    assert request.edit is None
    assert request.parsed.session is None


# --- answers ----------------------------------------------------------------------------------------------------------


def stream(*blocks: dict[str, Any], usage: dict[str, Any] | None = None) -> list[dict[str, Any]]:
    """A stream in which each block arrives in pieces."""
    found: list[dict[str, Any]] = [{"type": "message_start", "message": {"role": "assistant", "usage": usage}}]
    for index, block in enumerate(blocks):
        kind = {"text": "text_delta", "thinking": "thinking_delta"}.get(block["type"], "input_json_delta")
        name = {"text": "text", "thinking": "thinking"}.get(block["type"], "partial_json")
        text = block[name] if name in block else json.dumps(block["input"], separators=(",", ":"))
        begin: dict[str, Any] = {"input": {}} if name == "partial_json" else {name: ""}
        empty = {**block, **begin}
        found.append({"type": "content_block_start", "index": index, "content_block": empty})
        for start in range(0, len(text), 7):
            delta = {"type": kind, name: text[start : start + 7]}
            found.append({"type": "content_block_delta", "index": index, "delta": delta})
        found.append({"type": "content_block_stop", "index": index})
    found.append({"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 12}})
    return [*found, {"type": "message_stop"}]


THINKING = {"type": "thinking", "thinking": "Hm. " * 20, "signature": "s"}
TEXT = {"type": "text", "text": REPLY}


@pytest.mark.parametrize("blocks", [[TEXT], [THINKING, TEXT], [TEXT, CALL], [CALL, {**CALL, "id": "t2", "input": {}}]])
@pytest.mark.parametrize("streamed", [True, False])
def test_the_next_turn_matches_the_reply(blocks: list[dict[str, Any]], streamed: bool) -> None:
    first = ask(USER, tools=[TOOL])
    whole = {"type": "message", "role": "assistant", "content": blocks}
    answer = observed(first, *(stream(*blocks) if streamed else [whole]))
    assert continued(first, answer, ask(USER, {"role": "assistant", "content": blocks}, USER, tools=[TOOL]))
    assert not continued(first, answer, ask(USER, {"role": "assistant", "content": "Other."}, USER, tools=[TOOL]))
    if blocks == [TEXT]:
        assert continued(first, answer, ask(USER, {"role": "assistant", "content": REPLY}, USER, tools=[TOOL]))


def test_usage_and_the_end_of_a_stream() -> None:
    begun = {"input_tokens": 8, "cache_read_input_tokens": 32, "output_tokens": 0}
    answer = observed(ask(USER), *stream(TEXT, usage=begun))
    usage = answer.usage
    assert (usage.prompt_tokens, usage.cached_tokens, usage.output_tokens) == (40, 32, 12)
    assert (answer.started, answer.done, answer.failed) == (True, True, False)
    assert answer.tokens == -(-len(REPLY) // 7)


@pytest.mark.parametrize(
    ("usage", "counts"),
    [
        ({"input_tokens": 40, "output_tokens": 3}, (40, None, 3)),
        ({"input_tokens": 0, "cache_read_input_tokens": 40, "output_tokens": 3}, (40, 40, 3)),
        (
            {"input_tokens": 1, "cache_read_input_tokens": 2, "cache_creation_input_tokens": 4, "output_tokens": 3},
            (7, 2, 3),
        ),
        ({"input_tokens": 40, "cache_read_input_tokens": None, "output_tokens": 3}, (40, None, 3)),
        ({"input_tokens": "40", "cache_read_input_tokens": 2, "output_tokens": True}, (None, None, None)),
        ({"input_tokens": 10**400, "output_tokens": -1}, (None, None, None)),
        ([40], (None, None, None)),
        (None, (None, None, None)),
    ],
)
def test_usage_of_whole_answers(usage: object, counts: tuple[int | None, ...]) -> None:
    answer = observed(ask(USER), {"type": "message", "content": [], "usage": usage})
    assert (answer.usage.prompt_tokens, answer.usage.cached_tokens, answer.usage.output_tokens) == counts


@pytest.mark.parametrize(
    "error", [{"type": "error", "error": {"type": "api_error"}}, {"error": {"message": "m"}}, {"type": "error"}]
)
def test_errors_are_noticed(error: dict[str, Any]) -> None:
    answer = observed(ask(USER), error)
    assert (answer.failed, answer.done, answer.started) == (True, False, False)


def test_events_of_unknown_shapes_are_ignored() -> None:
    odd: list[dict[str, Any]] = [
        {"type": "ping"},
        {"type": ["message_stop"]},
        {"type": "message_start", "message": 3},
        {"type": "content_block_start", "index": "a", "content_block": {"type": "tool_use"}},
        {"type": "content_block_start", "index": 0},
        {"type": "content_block_delta", "index": None, "delta": {"partial_json": "{"}},
        {"type": "content_block_delta", "delta": [1]},
        {"type": "content_block_delta", "index": 0, "delta": {"text": 3, "thinking": {}, "partial_json": 4}},
        {"type": "message_delta", "usage": [1]},
        {},
    ]
    answer = observed(ask(USER), *odd)
    assert isinstance(answer, ObservedAnswer)
    assert (answer.failed, answer.done, answer.message.fields()) == (False, False, {"role": "assistant"})


def test_arguments_that_are_cut_off_are_kept_as_they_are() -> None:
    first = ask(USER)
    start = {"type": "content_block_start", "index": 0, "content_block": {"type": "tool_use", "id": "t", "name": "n"}}
    delta = {"type": "input_json_delta", "partial_json": '{"query": "' + "x" * 99}
    answer = observed(first, start, {"type": "content_block_delta", "index": 0, "delta": delta})
    assert first.reply_keys(answer.message.fields(), ())
