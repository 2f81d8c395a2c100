from __future__ import annotations

import json
import re
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from router.gateway.lenient_json import read_object
from router.gateway.observe import REPLY_CHARS, ObservedAnswer, Usage
from router.gateway.stream_observer import EVENT_BYTES, StreamObserver

USAGE = {"prompt_tokens": 9, "completion_tokens": 3, "prompt_tokens_details": {"cached_tokens": 8}}


def event(document: object, end: str = "\n") -> bytes:
    return f"data: {json.dumps(document)}{end}{end}".encode()


def delta(end: str = "\n", **fields: Any) -> bytes:
    return event({"choices": [{"index": 0, "delta": fields}]}, end)


def text(content: str) -> bytes:
    return event({"choices": [{"index": 0, "text": content}]})


def usage_event(end: str = "\n") -> bytes:
    return event({"choices": [], "usage": USAGE}, end)


def observe(*chunks: bytes, hide_usage: bool = True) -> tuple[StreamObserver, bytes]:
    observer = StreamObserver(ObservedAnswer(), hide_usage=hide_usage)
    shown = b"".join(observer.feed(chunk) for chunk in chunks) + observer.finish()
    observer.read_rest()
    return observer, shown


def stream(end: str) -> tuple[bytes, bytes]:
    """A whole stream, and what a client that asked for no usage sees of it."""
    head = f": hello{end}{end}".encode() + delta(end, role="assistant", content="") + delta(end, content="Pa")
    head += f"event: x{end}".encode() + delta(end, content="ris")
    done = f"data: [DONE]{end}{end}".encode()
    return head + usage_event(end) + done, head + done


def plain(shown: bytes) -> bytes:
    """With one kind of line end and of blank line: a CR LF cut in two may leave its LF with the event after it."""
    return re.sub(rb"\n{2,}", b"\n\n", re.sub(rb"\r\n|\r", b"\n", shown))


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@settings(deadline=None)
@given(st.lists(st.integers(0, 400), max_size=8))
def test_streams_may_be_cut_anywhere(end: str, cuts: list[int]) -> None:
    whole, visible = stream(end)
    bounds = [0, *sorted(min(cut, len(whole)) for cut in cuts), len(whole)]
    pieces = [whole[a:b] for a, b in pairwise(bounds)]
    observer, shown = observe(*pieces)
    assert plain(shown) == plain(visible)
    assert observer.observed.done
    assert observer.observed.message.fields() == {"role": "assistant", "content": "Paris"}
    assert observer.observed.usage.cached_tokens == 8
    observer, shown = observe(*pieces, hide_usage=False)
    assert shown == whole
    assert observer.observed.usage.output_tokens == 3


def test_nothing_is_held_back_from_a_client_that_sees_all() -> None:
    observer = StreamObserver(ObservedAnswer(), hide_usage=False)
    half = delta(content="Paris")[:20]
    assert observer.feed(half) == half
    assert observer.torn


def test_whole_events_are_never_held_back() -> None:
    observer = StreamObserver(ObservedAnswer(), hide_usage=True)
    one, two = delta(content="a"), delta(content="b")
    assert observer.feed(one + two[:10]) == one
    assert not observer.torn
    assert observer.feed(two[10:]) == two


def test_an_event_too_long_to_hold_back_is_let_through() -> None:
    observer = StreamObserver(ObservedAnswer(), hide_usage=True)
    flood = b"data: " + b"x" * EVENT_BYTES
    assert observer.feed(flood[:100]) == b""
    assert observer.feed(flood[100:]) == flood


@pytest.mark.parametrize(
    ("chunk", "started"),
    [
        (delta(role="assistant", content=""), False),
        (delta(role="assistant"), False),
        (usage_event(), False),
        (b": ping\n\n", False),
        (delta(content=""), True),
        (delta(role="assistant", content="a"), True),
        (delta(reasoning="hm"), True),
        (delta(reasoning_content="hm"), True),
        (delta(tool_calls=[{"index": 0, "function": {"name": "f"}}]), True),
        (delta(), True),
        (text("a"), True),
        (text(""), True),
    ],
)
def test_the_first_token(chunk: bytes, started: bool) -> None:
    assert observe(chunk)[0].observed.started is started


@pytest.mark.parametrize(
    ("chunks", "tokens"),
    [
        ([delta(role="assistant", content=""), delta(content="a"), delta(content="b")], 2),
        ([text("a"), text("b"), text("c"), usage_event()], 3),
        ([event({"choices": [{"index": 0, "text": "abc", "token_ids": [1, 2, 3]}]}), text("d")], 4),
        ([event({"choices": [{"index": 1, "text": "a"}]}), text("a")], 1),
        ([usage_event()], 0),
    ],
)
def test_tokens_that_have_come_are_counted(chunks: list[bytes], tokens: int) -> None:
    assert observe(*chunks)[0].observed.tokens == tokens


def test_an_event_without_a_blank_line_at_the_end_counts() -> None:
    assert observe(b"data: [DONE]")[0].observed.done
    assert observe(b"data: [DONE]")[1] == b"data: [DONE]"
    assert observe(usage_event().rstrip())[1] == b""


@pytest.mark.parametrize("junk", [b"data: {\n\n", b"data: 7\n\n", b"data: \xff\n\n", b"\n\n\n", b"data: {}\n\n"])
def test_what_cannot_be_read_passes(junk: bytes) -> None:
    observer, shown = observe(junk)
    assert shown == junk
    assert not observer.observed.started


def test_bytes_that_are_no_text_pass_after_the_first_token_too() -> None:
    odd = delta(content="b").replace(b"b", b"\xff")
    for junk in (odd, delta(content="b").replace(b"content", b"con\x80")):
        observer, shown = observe(delta(content="a"), junk, delta(content="c"), usage_event(), b"data: [DONE]\n\n")
        assert junk in shown
        assert observer.observed.usage == Usage(9, 8, 3)
        assert observer.observed.done


def test_running_usage_is_shown_and_the_last_one_counts() -> None:
    first = event({"choices": [{"index": 0, "text": "a"}], "usage": {"prompt_tokens": 9, "completion_tokens": 1}})
    observer, shown = observe(first, usage_event())
    assert shown == first
    assert observer.observed.usage.output_tokens == 3


@pytest.mark.parametrize(
    "usage",
    [{"prompt_tokens": "9"}, {"prompt_tokens": -1}, {"prompt_tokens": True}, {"prompt_tokens_details": 3}, [1]],
)
def test_odd_usage_teaches_nothing(usage: object) -> None:
    observed = observe(event({"choices": [], "usage": usage}))[0].observed
    assert (observed.usage.prompt_tokens, observed.usage.cached_tokens) == (None, None)


@pytest.mark.parametrize(
    ("prompt", "cached", "output", "expected"),
    [
        (40, 40, 1, (40, 40, 1)),
        (40, 0, 1, (40, 0, 1)),
        (40, 41, 3, (40, None, 3)),
        (None, 8, 3, (None, None, 3)),
        (0, 0, 3, (None, None, 3)),
        (40, -1, 0, (40, None, None)),
        (10**400, 10**399, 10**400, (None, None, None)),
        (40, 1.0, 3.0, (40, None, None)),
    ],
)
def test_counts_that_cannot_be_are_not_told(
    prompt: object, cached: object, output: object, expected: tuple[int | None, ...]
) -> None:
    usage = {"prompt_tokens": prompt, "completion_tokens": output, "prompt_tokens_details": {"cached_tokens": cached}}
    found = Usage()
    found.read(usage)
    assert (found.prompt_tokens, found.cached_tokens, found.output_tokens) == expected


def test_errors_in_the_stream_are_noticed() -> None:
    assert observe(event({"error": {"message": "out of memory"}}))[0].observed.failed


def test_tool_calls_are_put_together() -> None:
    pieces = [
        delta(tool_calls=[{"index": 0, "id": "c1", "type": "function", "function": {"name": "f", "arguments": ""}}]),
        delta(tool_calls=[{"index": 0, "function": {"arguments": '{"a"'}}]),
        delta(tool_calls=[{"index": 1, "id": "c2", "function": {"name": "g", "arguments": "{}"}}]),
        delta(tool_calls=[{"index": 0, "function": {"arguments": ": 1}"}}, {"index": "odd"}, {"function": 3}]),
    ]
    assert observe(*pieces)[0].observed.message.fields()["tool_calls"] == [
        {"id": "c1", "function": {"name": "f", "arguments": '{"a": 1}'}},
        {"id": "c2", "function": {"name": "g", "arguments": "{}"}},
    ]


def test_a_whole_answer_tells_the_same_as_its_stream() -> None:
    message: dict[str, Any] = {
        "role": "assistant",
        "content": "Paris",
        "reasoning": "hm",
        "tool_calls": [],
        "refusal": None,
    }
    whole = ObservedAnswer()
    whole.read({"choices": [{"index": 0, "message": message}], "usage": USAGE})
    streamed = observe(delta(role="assistant"), delta(reasoning="hm"), delta(content="Paris"), usage_event())[
        0
    ].observed
    assert whole.message.fields() == streamed.message.fields()
    assert whole.usage == streamed.usage


def test_only_the_first_choice_is_the_reply() -> None:
    observed = observe(event({"choices": [{"index": 1, "text": "b"}, {"index": 0, "text": "a", "token_ids": [5, 6]}]}))[
        0
    ].observed
    assert observed.message.fields()["content"] == "a"
    assert observed.message.token_ids == [5, 6]


def test_a_long_reply_is_kept_up_to_the_cap_without_a_hole() -> None:
    observer = StreamObserver(ObservedAnswer(), hide_usage=True)
    for _ in range(5):
        observer.feed(delta(content="x" * (REPLY_CHARS // 3)))
    observer.feed(delta(content="tail"))
    observer.feed(delta(tool_calls=[{"index": 0, "function": {"name": "f", "arguments": ""}}]))
    assert observer.observed.message.fields() == {"role": "assistant", "content": "x" * (REPLY_CHARS // 3 * 3)}


@pytest.mark.parametrize("data", [b"", b"[]", b"7", b"{", b"[" * 100_000])
def test_only_objects_are_documents(data: bytes) -> None:
    assert read_object(data) is None


ODD_CHUNKS = [
    {"choices": [{"index": 0, "delta": {"content": "a"}}]},
    {"choices": [{"delta": {"content": "b"}, "token_ids": [1, 2]}]},
    {"choices": [{"index": 1, "delta": {"content": "other"}}]},
    {"choices": [{"index": False, "delta": {"content": "c"}}]},
    {"choices": [{"index": 0, "delta": {"content": "d", "role": None}}]},
    {"choices": [{"index": 0, "delta": {"content": "", "role": "assistant"}}]},
    {"choices": [{"index": 0, "delta": {"content": "e", "reasoning": "f"}}]},
    {"choices": [{"index": 0, "delta": {"content": 7}}]},
    {"choices": [{"index": 0, "delta": None, "text": "g"}]},
    {"choices": [{"index": 0, "delta": {}, "message": {"content": "l"}}]},
    {"choices": [{"index": 0, "delta": {}, "text": "m"}]},
    {"choices": [{"index": 0, "text": "h"}]},
    {"choices": [{"index": 0, "delta": {"content": "i"}}, {"index": 1, "delta": {"content": "j"}}]},
    {"choices": [{"index": 0, "delta": {"tool_calls": [{"index": 0, "function": {"name": "n", "arguments": "{}"}}]}}]},
    {"choices": [{"index": 0, "delta": {"content": "k"}}], "error": {"message": "m"}},
    {"choices": []},
    {"choices": {}},
    [1],
    "text",
]


JUNK = [
    b"",
    b'data: {"choices": []}, {"choices": []}\n\n',
    b'data: {"choices": [{"delta": {"content": "x"}}]}, {"choices": [{"delta": {"content": "y"}}]}\n\n',
    b'data: {"choices":\n[{"delta": {"content": "x"}}]}\n\n',
    b'data: {"choices":\r[{"delta": {"content": "x"}}]}\n\n',
    b'{"choices": [{"delta": {"content": "x"}}]}\n\n',
    b": a comment\n\n",
]


@given(st.lists(st.sampled_from(ODD_CHUNKS), max_size=8), st.sampled_from(JUNK))
def test_chunks_read_together_tell_the_same_as_one_by_one(chunks: list[object], junk: bytes) -> None:
    together = StreamObserver(ObservedAnswer(), hide_usage=True)
    together.observed.started = True
    one_by_one = ObservedAnswer(started=True)
    for chunk in chunks:
        together.feed(event(chunk))
        if isinstance(chunk, dict):
            one_by_one.read(chunk)
    together.feed(junk)
    together.read_rest()
    assert together.observed == one_by_one
