from __future__ import annotations

import json
from typing import Any

import pytest

from router.errors import BadRequest
from router.gateway.apis import CHAT, COMPLETIONS
from router.gateway.openai_request import NAME_CHARS, OpenAIRequest, parse_request
from router.prefix import blocks

USER = {"role": "user", "content": "What is the capital of France? " * 40}


def read(fields: dict[str, Any] | bytes, route: str = CHAT, **headers: str) -> OpenAIRequest:
    body = fields if isinstance(fields, bytes) else json.dumps(fields).encode()
    names = {name.replace("_", "-").encode(): value.encode() for name, value in headers.items()}
    return parse_request(body, route=route, headers=names, request_id="r", block_tokens=16)


def sent(request: OpenAIRequest, body: bytes) -> bytes:
    """The body that the engine gets."""
    return b"".join(request.body_for_engine(body))


def test_what_routing_needs_is_read() -> None:
    request = read({"model": "m", "messages": [USER], "stream": True, "max_tokens": 9, "n": 3}).parsed
    assert (request.model, request.stream, request.max_tokens, request.choices) == ("m", True, 9, 3)
    assert (request.request_id, request.route, request.session) == ("r", CHAT, None)
    assert request.prompt.block_units == 64
    assert len(request.prompt.keys) == request.prompt.units // 64


def test_a_model_may_be_left_to_the_engine() -> None:
    assert read({"messages": []}).parsed.model == ""


@pytest.mark.parametrize(
    ("fields", "bound"),
    [
        ({}, None),
        ({"max_tokens": 5}, 5),
        ({"max_tokens": 5, "max_completion_tokens": 7}, 7),
        ({"max_tokens": None}, None),
        ({"max_tokens": "5"}, None),
        ({"max_tokens": True}, None),
        ({"max_tokens": 0}, None),
    ],
)
def test_output_bounds(fields: dict[str, Any], bound: int | None) -> None:
    assert read({"messages": [USER], **fields}).parsed.max_tokens == bound


@pytest.mark.parametrize(("fields", "bound"), [({}, 16), ({"max_tokens": 5}, 5), ({"max_tokens": None}, None)])
def test_plain_completions_have_a_default_bound(fields: dict[str, Any], bound: int | None) -> None:
    assert read({"prompt": "a", **fields}, COMPLETIONS).parsed.max_tokens == bound


@pytest.mark.parametrize(
    ("prompt", "units", "in_tokens", "choices"),
    [
        ("text", 4, False, 2),
        ("", 0, False, 2),
        ("caf\u00e9", 5, False, 2),
        (["text", "more"], 4, False, 4),
        ([1, 2, 3], 3, True, 2),
        ([[1, 2, 3], [4], [5]], 3, True, 6),
    ],
)
def test_prompts_of_every_shape(prompt: object, units: int, in_tokens: bool, choices: int) -> None:
    request = read({"prompt": prompt, "n": 2}, COMPLETIONS).parsed
    assert (request.prompt.units, request.prompt.in_tokens, request.choices) == (units, in_tokens, choices)


def test_embedded_prompts_differ_by_their_root() -> None:
    one, two = (read({"prompt_embeds": each}, COMPLETIONS).parsed.prompt for each in ("aa", "bb"))
    assert one.root != two.root


@pytest.mark.parametrize(
    ("body", "route", "param"),
    [
        (b"", CHAT, None),
        (b"{", CHAT, None),
        (b"[]", CHAT, None),
        (b'"text"', CHAT, None),
        (b"\xff", CHAT, None),
        (b'{"a":' * 100_000, CHAT, None),
        (b"{}", CHAT, "messages"),
        (b'{"messages": "hello"}', CHAT, "messages"),
        (b'{"messages": [{}, "hello"]}', CHAT, "messages[1]"),
        (b'{"messages": [], "model": ["m"]}', CHAT, "model"),
        (b"{}", COMPLETIONS, "prompt"),
        (b'{"prompt": []}', COMPLETIONS, "prompt"),
        (b'{"prompt": {}}', COMPLETIONS, "prompt"),
        (b'{"prompt": [1.5]}', COMPLETIONS, "prompt"),
        (b'{"prompt": [[1, "a"]]}', COMPLETIONS, "prompt"),
        (b'{"prompt": [99999999999999999999]}', COMPLETIONS, "prompt"),
    ],
)
def test_what_no_engine_could_read_is_refused(body: bytes, route: str, param: str | None) -> None:
    with pytest.raises(BadRequest) as caught:
        read(body, route)
    assert caught.value.param == param


@pytest.mark.parametrize(
    ("headers", "fields", "session"),
    [
        ({"x_session_id": "h"}, {"session_id": "b"}, "h"),
        ({"x_dynamo_session_id": "d"}, {}, "d"),
        ({"x_request_id": "never"}, {}, None),
        ({}, {"session_params": {"session_id": "p"}, "user": "u"}, "p"),
        ({}, {"session_params": 3, "user": "u"}, "u"),
        ({}, {"session_id": "b", "user": "u"}, "b"),
        ({}, {"user": 7}, None),
    ],
)
def test_sessions(headers: dict[str, str], fields: dict[str, Any], session: str | None) -> None:
    assert read({"messages": [], **fields}, **headers).parsed.session == session


def test_a_long_name_of_a_session_is_kept_short() -> None:
    """Maps of the router remember names of sessions, and clients make them."""
    names = [read({"messages": [], "user": "u" * length}).parsed.session for length in (256, 257, 10**6, 257)]
    assert names[0] == "u" * 256
    assert len(set(names)) == 3
    assert names[1] == names[3]
    assert all(name is not None and len(name) <= NAME_CHARS for name in names)
    assert len(read({"messages": []}, x_session_id="s" * 5000).parsed.session or "") <= NAME_CHARS
    assert read({"messages": [], "user": "\ud800" * 300}).parsed.session


# --- the one edit ----------------------------------------------------------------------------------


@pytest.mark.parametrize("extra", [b"", b',"stream":false', b',"stream":null', b',"stream":0'])
def test_bodies_of_whole_answers_pass_untouched(extra: bytes) -> None:
    body = b' {"x":1.0e0, "messages":[]' + extra + b"}\n"
    parsed = read(body)
    assert (sent(parsed, body), parsed.hide_usage, parsed.parsed.stream) == (body, False, False)


def test_streams_get_one_field_spliced_in_and_no_other_byte_changed() -> None:
    body = b' \n{ "x":1.0e0,"big":123456789012345678901,"n\\u0061n":NaN, "messages":[],"stream":true}\n'
    parsed = read(body)
    edit = b'"stream_options":{"include_usage":true},'
    assert sent(parsed, body).replace(edit, b"", 1) == body
    assert json.loads(sent(parsed, body))["stream_options"] == {"include_usage": True}
    assert parsed.hide_usage


def test_a_large_body_is_sent_in_pieces_and_not_copied() -> None:
    body = json.dumps({"messages": [USER] * 100, "stream": True}).encode()
    pieces = read(body).body_for_engine(body)
    assert [type(piece) for piece in pieces] == [memoryview, bytes, memoryview]
    assert json.loads(b"".join(pieces))["stream_options"] == {"include_usage": True}


@pytest.mark.parametrize("stream", [True, "true", 1, "1", "on"])
def test_the_words_an_engine_takes_for_true(stream: object) -> None:
    assert read({"messages": [], "stream": stream}).parsed.stream


@pytest.mark.parametrize("options", [{"include_usage": True}, {"include_usage": True, "continuous_usage_stats": True}])
def test_a_client_that_asks_for_usage_is_left_alone(options: dict[str, Any]) -> None:
    body = json.dumps({"messages": [], "stream": True, "stream_options": options}).encode()
    parsed = read(body)
    assert (sent(parsed, body), parsed.hide_usage) == (body, False)


@pytest.mark.parametrize(
    ("options", "completed"),
    [
        (None, {"include_usage": True}),
        ({}, {"include_usage": True}),
        ({"include_usage": False, "new": 1}, {"include_usage": True, "new": 1}),
        ({"include_usage": False, "continuous_usage_stats": True}, {"include_usage": True}),
        ("odd", {"include_usage": True}),
    ],
)
def test_stream_options_that_do_not_ask_are_completed(options: object, completed: dict[str, Any]) -> None:
    fields = {"messages": [{"role": "user", "content": "\ud800 é"}], "stream": True, "stream_options": options, "k": 1}
    parsed = read(fields)
    assert json.loads(sent(parsed, json.dumps(fields).encode())) == {**fields, "stream_options": completed}
    assert parsed.hide_usage


@pytest.mark.parametrize("encoding", ["utf-16", "utf-8-sig"])
def test_bodies_in_other_encodings_are_written_anew(encoding: str) -> None:
    fields = {"messages": [USER], "stream": True}
    body = json.dumps(fields).encode(encoding)
    assert json.loads(sent(read(body), body).decode()) == {**fields, "stream_options": {"include_usage": True}}


# --- how an answer continues the prompt ------------------------------------------------------------

REPLY = "It is Paris. " * 20


def follows(
    first: OpenAIRequest, second: OpenAIRequest, reply: dict[str, Any], token_ids: tuple[int, ...] = ()
) -> bool:
    """Whether `second` begins with `first` and its reply, to the last full block; there must be such blocks."""
    prompt = first.parsed.prompt
    more = blocks.extend(prompt, first.reply(reply, token_ids))
    known = prompt.keys + more
    return bool(more) and second.parsed.prompt.keys[: len(known)] == known


def test_a_chats_next_turn_extends_the_chain() -> None:
    reply = {"role": "assistant", "content": REPLY}
    more = {"role": "user", "content": "And of Spain?"}
    assert follows(read({"messages": [USER]}), read({"messages": [USER, reply, more]}), reply)
    assert follows(read({"messages": [USER], "stream": True}), read({"messages": [USER, reply, more]}), reply)


def test_a_tool_calls_next_turn_extends_the_chain() -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "look_up", "arguments": REPLY}}
    reply = {"role": "assistant", "content": None, "tool_calls": [call]}
    result = {"role": "tool", "tool_call_id": "c1", "content": "Madrid"}
    tools = [{"type": "function", "function": {"name": "look_up"}}]
    first, second = ({"messages": m, "tools": tools} for m in ([USER], [USER, reply, result]))
    assert follows(read(first), read(second), {"role": "assistant", "tool_calls": [call]})


def test_reasoning_that_the_client_drops_ends_the_match_where_the_engines_cache_does() -> None:
    told = {"role": "assistant", "reasoning": "Let me think. " * 20, "content": REPLY}
    kept = {"role": "assistant", "content": REPLY}
    first = read({"messages": [USER]})
    assert follows(first, read({"messages": [USER, told]}), told)
    assert not follows(first, read({"messages": [USER, kept]}), told)


def test_a_continued_message_extends_the_chain() -> None:
    begun = {"role": "assistant", "content": "Well. "}
    first = read({"messages": [USER, begun], "continue_final_message": True, "add_generation_prompt": False})
    whole = {"role": "assistant", "content": "Well. " + REPLY}
    assert follows(first, read({"messages": [USER, whole]}), {"role": "assistant", "content": REPLY})


def test_a_completions_next_turn_extends_the_chain() -> None:
    first, second = (read({"prompt": p}, COMPLETIONS) for p in ("a" * 100, "a" * 100 + REPLY + "and"))
    assert follows(first, second, {"role": "assistant", "content": REPLY})


def test_token_ids_extend_the_chain_where_the_engine_tells_them() -> None:
    ids = tuple(range(40))
    first, second = (read({"prompt": p}, COMPLETIONS) for p in ([7] * 20, [7] * 20 + list(ids)))
    assert follows(first, second, {"content": REPLY}, ids)
    assert first.reply({"content": REPLY}) == ()


def test_an_echoed_prompt_is_no_reply() -> None:
    assert read({"prompt": "a", "echo": True}, COMPLETIONS).reply({"content": "a" + REPLY}) == b""


def test_bounds_on_latency_come_in_headers() -> None:
    request = read({"messages": [USER]}, x_slo_ttft_ms="250", x_slo_tpot_ms="12.5").parsed
    assert (request.slo_ttft_s, request.slo_tpot_s) == (0.25, 0.0125)
    request = read({"messages": [USER]}).parsed
    assert (request.slo_ttft_s, request.slo_tpot_s) == (None, None)


@pytest.mark.parametrize("text", ["soon", "", "0", "-5", "nan", "inf", "1e999"])
@pytest.mark.parametrize("header", ["x_slo_ttft_ms", "x_slo_tpot_ms"])
def test_a_bound_that_is_none_is_refused(header: str, text: str) -> None:
    with pytest.raises(BadRequest, match=f"`{header.replace('_', '-')}` must be a number of milliseconds above 0"):
        read({"messages": [USER]}, **{header: text})
