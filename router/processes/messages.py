"""Requests, outcomes and lines of the recording as the protocol carries them, both ways."""

from __future__ import annotations

import struct

from router.gateway.trace_writer import EndedRequest
from router.processes import protocol
from router.processes.protocol import ProtocolError, pack_keys, pack_text, unpack_keys, unpack_text
from router.types import BlockKey, EngineId, Outcome, ParsedRequest, Prompt

MOST_INTEGER = (1 << 63) - 1  # clients choose bounds of any size, and MessagePack holds 64 bits


def pack_request(request: ParsedRequest) -> protocol.Request:
    prompt, tail = request.prompt, b""
    if not prompt.keys:
        tail = prompt.tail if isinstance(prompt.tail, bytes) else struct.pack(f"<{len(prompt.tail)}q", *prompt.tail)
    return protocol.Request(
        request.request_id,
        request.route,
        pack_text(request.model),
        prompt.root,
        pack_keys(prompt.keys),
        prompt.block_units,
        prompt.units,
        prompt.in_tokens,
        tail,
        request.stream,
        None if request.max_tokens is None else min(request.max_tokens, MOST_INTEGER),
        min(request.choices, MOST_INTEGER),
        None if request.session is None else pack_text(request.session),
        request.slo_ttft_s,
        request.slo_tpot_s,
        request.generates,
        None if request.parent is None else pack_text(request.parent),
        request.final,
    )


def unpack_request(packed: protocol.Request) -> ParsedRequest:
    """The reverse of `pack_request`, but for the tail of a prompt that has a full block. Raises ProtocolError."""
    keys = unpack_keys(packed.keys)
    if len(keys) * packed.block_units > packed.units:
        raise ProtocolError(f"{len(keys)} blocks of {packed.block_units} units in a prompt of {packed.units}")
    return ParsedRequest(
        request_id=packed.request_id,
        route=packed.route,
        model=unpack_text(packed.model),
        prompt=Prompt(
            root=BlockKey(packed.root),
            keys=keys,
            block_units=packed.block_units,
            units=packed.units,
            tail=_tokens(packed.tail) if packed.in_tokens else packed.tail,
            in_tokens=packed.in_tokens,
        ),
        stream=packed.stream,
        max_tokens=packed.max_tokens,
        choices=packed.choices,
        session=None if packed.session is None else unpack_text(packed.session),
        slo_ttft_s=packed.slo_ttft_s,
        slo_tpot_s=packed.slo_tpot_s,
        generates=packed.generates,
        parent=None if packed.parent is None else unpack_text(packed.parent),
        final=packed.final,
    )


def _tokens(tail: bytes) -> tuple[int, ...]:
    if len(tail) % 8:
        raise ProtocolError(f"{len(tail)} bytes of token ids, a multiple of 8 was expected")
    return struct.unpack(f"<{len(tail) // 8}q", tail)


def pack_outcome(serial: int, outcome: Outcome, *, whole: bool) -> protocol.Complete:
    """whole: all keys of the prompt were sent, so that those of the reply continue them."""
    return protocol.Complete(
        serial,
        outcome.ending,
        outcome.done_s,
        outcome.first_token_s,
        outcome.prompt_tokens,
        outcome.cached_tokens,
        outcome.output_tokens,
        pack_keys(outcome.reply_keys) if whole else b"",
        outcome.stop,
        None if outcome.tool is None else pack_text(outcome.tool),
    )


def unpack_outcome(packed: protocol.Complete, dispatched_s: float, now: float) -> Outcome:
    """Raises ProtocolError. Times that cannot be are set right: they lie between the dispatch and now."""
    done_s = within(packed.done_s, dispatched_s, now)
    return Outcome(
        packed.ending,
        done_s,
        None if packed.first_token_s is None else within(packed.first_token_s, dispatched_s, done_s),
        packed.prompt_tokens,
        packed.cached_tokens,
        packed.output_tokens,
        unpack_keys(packed.reply_keys),
        packed.stop,
        None if packed.tool is None else unpack_text(packed.tool),
    )


def within(time_s: float, low_s: float, high_s: float) -> float:
    """The time if it lies between the two, else the bound that it is beyond; the upper one for nan."""
    if low_s <= time_s <= high_s:
        return time_s
    return low_s if time_s < low_s else high_s


def pack_line(line: EndedRequest) -> protocol.Line:
    return protocol.Line(
        line.done_s,
        line.first_token_s,
        line.prompt_tokens,
        line.output_tokens,
        line.cached_tokens,
        pack_keys(line.keys),
        line.block_units,
        line.units,
        None if line.max_tokens is None else min(line.max_tokens, MOST_INTEGER),
        line.stream,
        line.route,
        pack_text(line.model),
        None if line.session is None else pack_text(line.session),
        line.ending,
        line.engine,
        line.policy,
        line.stop,
    )


def unpack_line(packed: protocol.Line, arrival_s: float, now: float) -> EndedRequest:
    """Raises ProtocolError. Times that cannot be are set right, as `unpack_outcome` does."""
    done_s = within(packed.done_s, arrival_s, now)
    return EndedRequest(
        arrival_s,
        done_s,
        None if packed.first_token_s is None else within(packed.first_token_s, arrival_s, done_s),
        packed.prompt_tokens,
        packed.output_tokens,
        packed.cached_tokens,
        unpack_keys(packed.keys),
        packed.block_units,
        packed.units,
        packed.max_tokens,
        packed.stream,
        packed.route,
        unpack_text(packed.model),
        None if packed.session is None else unpack_text(packed.session),
        packed.ending,
        EngineId(packed.engine),
        packed.policy,
        packed.stop,
    )
