"""Frames and messages: they pass as they are, and whatever else arrives is refused with one kind of error."""

from __future__ import annotations

import random
from contextlib import suppress

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.gateway.openai_request import parse_request
from router.gateway.trace_writer import EndedRequest
from router.processes import protocol
from router.processes.messages import (
    pack_line,
    pack_outcome,
    pack_request,
    unpack_line,
    unpack_outcome,
    unpack_request,
)
from router.processes.protocol import (
    LENGTH,
    MOST_FRAME_BYTES,
    Frames,
    ProtocolError,
    frame,
    pack_keys,
    unpack_keys,
    unpack_text,
)
from router.types import BlockKey, Ending, Outcome, ParsedRequest

LONG = "The capital of France is Paris. " * 40
BODIES = {
    "chat": b'{"model": "m", "messages": [{"role": "user", "content": "%s"}], "n": 3, "stream": true}' % LONG.encode(),
    "short": b'{"model": "m", "messages": [{"role": "user", "content": "hi"}]}',
    "surrogates": b'{"model": "m\\ud800", "user": "\\udfff", "messages": []}',
    "tokens": b'{"model": "m", "prompt": [%s]}' % b",".join(b"%d" % n for n in range(700)),
    "few tokens": b'{"prompt": [1, 2, -3], "max_tokens": 5}',
    "embeddings": b'{"input": ["some text", "more text"]}',
    "big numbers": b'{"prompt": "x", "max_tokens": 1%s, "n": 1%s}' % (b"0" * 40, b"0" * 40),
}


def parsed(name: str) -> ParsedRequest:
    route = "/v1/completions" if b'"prompt"' in BODIES[name] else "/v1/chat/completions"
    route = "/v1/embeddings" if name == "embeddings" else route
    headers = {b"x-slo-ttft-ms": b"500"}
    return parse_request(BODIES[name], route=route, headers=headers, request_id="r", block_tokens=64).parsed


def sent(message: protocol.FromEdge) -> protocol.FromEdge:
    (content,) = Frames().feed(frame(message))
    arrived: protocol.FromEdge = protocol.from_edge.decode(content)
    return arrived


@pytest.mark.parametrize("name", BODIES)
def test_a_request_arrives_as_it_was_sent(name: str) -> None:
    request = parsed(name)
    route = sent(protocol.Route(7, pack_request(request), ["engine-1"]))
    assert isinstance(route, protocol.Route)
    assert (route.serial, route.tried) == (7, ["engine-1"])
    found = unpack_request(route.request)
    for field in ("request_id", "route", "model", "stream", "session", "slo_ttft_s", "slo_tpot_s", "generates"):
        assert getattr(found, field) == getattr(request, field)
    assert (found.prompt.root, found.prompt.keys, found.prompt.units) == (
        request.prompt.root,
        request.prompt.keys,
        request.prompt.units,
    )
    assert found.prompt.in_tokens == request.prompt.in_tokens
    assert found.prompt.tail == (type(request.prompt.tail)() if request.prompt.keys else request.prompt.tail)
    assert found.max_tokens == (None if request.max_tokens is None else min(request.max_tokens, 2**63 - 1))
    assert found.choices == min(request.choices, 2**63 - 1)


def test_an_outcome_arrives_as_it_was_sent_and_its_times_cannot_lie_outside() -> None:
    outcome = Outcome(Ending.OK, 9.0, 5.0, 40, 32, 3, (BlockKey(1), BlockKey(2**64 - 1)))
    complete = sent(pack_outcome(3, outcome, whole=True))
    assert isinstance(complete, protocol.Complete)
    assert unpack_outcome(complete, 1.0, 10.0) == outcome
    assert unpack_outcome(pack_outcome(3, outcome, whole=False), 1.0, 10.0).reply_keys == ()
    for wrong_s in (float("nan"), float("inf"), 99.0):
        complete.done_s = complete.first_token_s = wrong_s
        found = unpack_outcome(complete, 1.0, 10.0)
        assert (found.done_s, found.first_token_s) == (10.0, 10.0)
    complete.done_s = complete.first_token_s = -1.0
    assert unpack_outcome(complete, 1.0, 10.0).done_s == 1.0


def test_a_line_of_the_recording_arrives_as_it_was_sent() -> None:
    keys = (BlockKey(5),)
    line = EndedRequest(1.0, 4.0, 2.0, 9, 3, None, keys, 64, 80, 5, True, "/v1/x", "m", "s", Ending.OK, "e", "lbgr")
    ended = sent(protocol.Ended(1, pack_line(line)))
    assert isinstance(ended, protocol.Ended)
    assert ended.line is not None
    assert unpack_line(ended.line, 1.0, 9.0) == line


def test_frames_are_found_however_the_bytes_are_cut() -> None:
    messages: list[protocol.FromEdge] = [protocol.Hello(1, "edge-0"), protocol.FirstToken(1, 2.5)]
    messages += [protocol.Route(n, pack_request(parsed(name)), []) for n, name in enumerate(BODIES)]
    stream = b"".join(map(frame, messages))
    chance = random.Random(1)
    for most in (1, 2, 3, 7, 100, 5000):
        frames, found, begin = Frames(), [], 0
        while begin < len(stream):
            size = chance.randint(1, most)
            found += [protocol.from_edge.decode(content) for content in frames.feed(stream[begin : begin + size])]
            begin += size
        assert found == messages


def test_frames_that_are_too_long_are_refused_on_both_sides() -> None:
    with pytest.raises(ProtocolError, match="at most"):
        frame(protocol.Hello(1, "x" * (MOST_FRAME_BYTES + 1)))
    with pytest.raises(ProtocolError, match="at most"):
        Frames().feed(LENGTH.pack(MOST_FRAME_BYTES + 1))
    assert Frames().feed(LENGTH.pack(MOST_FRAME_BYTES)) == []


def test_of_a_very_long_chain_the_beginning_is_sent() -> None:
    keys = tuple(map(BlockKey, range(protocol.MOST_KEYS + 5)))
    assert unpack_keys(pack_keys(keys)) == keys[: protocol.MOST_KEYS]
    assert len(pack_keys(keys)) <= MOST_FRAME_BYTES / 2


def test_fields_that_contradict_each_other_are_refused() -> None:
    request = pack_request(parsed("chat"))
    request.units = 1
    with pytest.raises(ProtocolError, match="in a prompt of 1"):
        unpack_request(request)
    with pytest.raises(ProtocolError, match="a multiple of 8"):
        unpack_keys(b"1234567")
    with pytest.raises(ProtocolError, match="not UTF-8"):
        unpack_text(b"\xff")
    few = pack_request(parsed("few tokens"))
    few.tail = b"123"
    with pytest.raises(ProtocolError, match="token ids"):
        unpack_request(few)


def test_a_later_version_may_add_fields() -> None:
    content = msgspec.msgpack.encode([0, 2, "edge-0", "more"])
    assert protocol.from_edge.decode(content) == protocol.Hello(2, "edge-0")


@given(st.binary(max_size=200))
def test_any_bytes_are_a_message_or_an_error(content: bytes) -> None:
    with suppress(msgspec.DecodeError):
        protocol.from_edge.decode(content)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.binary(max_size=9) | st.text(),
    lambda inner: st.lists(inner, max_size=16),
    max_leaves=40,
)


@given(st.integers(0, 8), st.lists(VALUES, max_size=16))
def test_any_fields_are_a_message_or_an_error(tag: int, fields: list[object]) -> None:
    with suppress(msgspec.DecodeError, ProtocolError):
        message = protocol.from_edge.decode(msgspec.msgpack.encode([tag, *fields]))
        if isinstance(message, protocol.Route | protocol.Resume):
            unpack_request(message.request)
        elif isinstance(message, protocol.Complete):
            unpack_outcome(message, 0.0, 1.0)
        elif isinstance(message, protocol.Ended) and message.line is not None:
            unpack_line(message.line, 0.0, 1.0)


def test_every_message_says_what_it_is_and_has_a_number_of_its_own() -> None:
    kinds = [each for each in vars(protocol).values() if isinstance(each, type) and issubclass(each, msgspec.Struct)]
    tags = [kind.__struct_config__.tag for kind in kinds if kind.__struct_config__.tag is not None]
    assert len(tags) == len(set(tags)) == 15
    assert all(kind.__doc__ for kind in kinds)
