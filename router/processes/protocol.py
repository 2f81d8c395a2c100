"""The protocol between an edge, which serves clients, and the router process, which decides.

It runs over a stream socket, and both ends send frames: a length (4 bytes, little endian, at most MOST_FRAME_BYTES),
and so many bytes of MessagePack. A frame holds one message. A message is an array: first the number of its kind (`tag`
below), then its fields in the order in which they stand here. A later version may add fields at the end, which an older
reader ignores; any other change raises VERSION. The fields of `Hello` and `Welcome` never change.

    edge                                    router process
    Hello                           -->
                                    <--     Welcome, Fleet              Fleet again whenever it changes
    Resume, for each running request -->                                after a reconnect
    Route                           -->
                                    <--     Placed or Refused
    FirstToken, of a stream         -->
    Complete                        -->                                 once for each Route and Resume
    Heard, Unreachable              -->                                 what else the edge sees of engines
                                    <--     Out                         when an engine is found to be down or to hang

The edge numbers its tries (`serial`), beginning with 1, and never uses a number twice, not even on a later connection.
What was placed is completed exactly once: by `Complete`, or as cancelled by the end of the connection. An edge whose
client leaves does not wait for `Placed`: it sends `Complete` at once, and ignores the `Placed` that may still come. A
`Complete` whose serial is unknown is ignored, because its `Route` was refused. If the recording is on, the edge also
tells of every client's request when it has arrived (`Arrived`) and ended (`Ended`).

Times are seconds on CLOCK_MONOTONIC, so both ends are on one machine. Texts that clients choose are UTF-8 in a bin
field, with lone surrogates as WTF-8 has them, because JSON allows those. Keys of blocks are 8 bytes each, little
endian, in one bin field; at most MOST_KEYS are sent of a longer chain, from its beginning.

Engines come and go. What an edge tells of one that has left meanwhile is ignored, and so is its `Resume`. `Fleet` has
told of a new one before anything is placed there.

A peer that breaks a rule is cut off (`ProtocolError`).
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Annotated, TypeAlias

import msgspec
from msgspec import Meta, Struct

from router.types import BlockKey, Ending, Stop

VERSION = 3
MOST_FRAME_BYTES = 16 << 20
MOST_KEYS = 1 << 20
KEY_BYTES = 8

Count = Annotated[int, Meta(ge=0)]
LENGTH = struct.Struct("<I")


class ProtocolError(Exception):
    """The peer broke a rule of the protocol. The message says which."""


class Request(Struct, array_like=True, gc=False):
    """What routing needs of a request: a part of `Route` and `Resume`. The fields are those of `types.ParsedRequest`
    and its prompt."""

    request_id: str
    route: str
    model: bytes
    root: Count
    keys: bytes
    block_units: Annotated[int, Meta(ge=1)]
    units: Count
    in_tokens: bool
    tail: bytes
    """The whole prompt, if it is shorter than one block (token ids: 8 bytes each, little endian). Else empty."""
    stream: bool
    max_tokens: Count | None
    choices: Count
    session: bytes | None
    slo_ttft_s: float | None
    slo_tpot_s: float | None
    generates: bool = True
    parent: bytes | None = None
    final: bool = False


class Hello(Struct, array_like=True, tag=0, gc=False):
    """The edge greets. Nothing may come before it."""

    version: int
    name: str
    """For the log."""


class Route(Struct, array_like=True, tag=1, gc=False):
    """Where shall this request go?"""

    serial: Count
    request: Request
    tried: list[str]
    """The engines that have been tried already."""


class FirstToken(Struct, array_like=True, tag=2, gc=False):
    """The first token of a stream was seen."""

    serial: Count
    at_s: float


class Complete(Struct, array_like=True, tag=3, gc=False):
    """A try is over. The fields are those of `types.Outcome`."""

    serial: Count
    ending: Ending
    done_s: float
    first_token_s: float | None = None
    prompt_tokens: Count | None = None
    cached_tokens: Count | None = None
    output_tokens: Count | None = None
    reply_keys: bytes = b""
    stop: Stop = Stop.UNKNOWN
    tool: bytes | None = None


class Unreachable(Struct, array_like=True, tag=4, gc=False):
    """An engine refused a connection."""

    engine: str


class Resume(Struct, array_like=True, tag=5, gc=False):
    """A request that was placed on another connection, or by the edge itself, is still running."""

    serial: Count
    request: Request
    engine: str
    policy: str
    reason: str
    fallback: str | None
    dispatched_s: float
    first_token_s: float | None


class Arrived(Struct, array_like=True, tag=6, gc=False):
    """A client's request has arrived. number: the edge's own, as a serial is."""

    number: Count
    at_s: float


class Ended(Struct, array_like=True, tag=7, gc=False):
    """A client's request is over."""

    number: Count
    line: Line | None
    """None: the recording leaves the request out."""


class Line(Struct, array_like=True, gc=False):
    """What the recording needs of a request. The fields are those of `gateway.trace_writer.EndedRequest`; its arrival
    was told before."""

    done_s: float
    first_token_s: float | None
    prompt_tokens: Count
    output_tokens: Count
    cached_tokens: Count | None
    keys: bytes
    block_units: Annotated[int, Meta(ge=1)]
    units: Count
    max_tokens: Count | None
    stream: bool
    route: str
    model: bytes
    session: bytes | None
    ending: Ending
    engine: str
    policy: str
    stop: Stop = Stop.UNKNOWN


class Heard(Struct, array_like=True, tag=8, gc=False):
    """Bytes of some answer have come from the engine within the last second."""

    engine: str


class Welcome(Struct, array_like=True, tag=16, gc=False):
    """The router process greets. It does so before anything else, and only once it knows the health of the fleet."""

    version: int
    records: bool
    """Whether `Arrived` and `Ended` are wanted."""


class Engine(Struct, array_like=True, gc=False):
    """One engine, a part of `Fleet`."""

    engine: Annotated[str, Meta(pattern=r"\A[\w.-]{1,64}\Z")]
    address: Annotated[str, Meta(max_length=2048)]
    """Where it is, as `core.worker_url` writes it."""
    ready: bool
    """Whether it may get requests: it is healthy and not draining."""
    models: list[str]
    """Those that it serves; empty if it does not tell."""


class Fleet(Struct, array_like=True, tag=17, gc=False):
    """All engines: what an edge has open on others is to be cut off. policy: the one with the largest share of the
    decisions."""

    policy: str
    engines: list[Engine]


class Placed(Struct, array_like=True, tag=18, gc=False):
    """The answer to `Route`: the load is booked. The fields are those of `types.Placement`."""

    serial: Count
    engine: str
    policy: str
    reason: str
    fallback: str | None
    predicted_s: float | None
    prompt_tokens: float
    dispatched_s: float
    conversation: str | None = None
    held_s: float = 0.0


class Refused(Struct, array_like=True, tag=19, gc=False):
    """The answer to `Route`: nothing is booked. The client gets an error of that OpenAI code."""

    serial: Count
    code: str
    message: bytes
    param: str | None


class Held(Struct, array_like=True, tag=21, gc=False):
    """`Route` is not answered yet: the request waits (`core.holding`), for `longest_s` at most."""

    serial: Count
    longest_s: float


class Out(Struct, array_like=True, tag=20, gc=False):
    """The engine was taken out, and others can serve its requests: those without a byte of an answer shall move."""

    engine: str


FromEdge: TypeAlias = Hello | Route | FirstToken | Complete | Unreachable | Resume | Arrived | Ended | Heard
FromRouter: TypeAlias = Welcome | Fleet | Placed | Refused | Held | Out

from_edge = msgspec.msgpack.Decoder(FromEdge)
from_router = msgspec.msgpack.Decoder(FromRouter)
_encode = msgspec.msgpack.Encoder().encode


def frame(message: FromEdge | FromRouter) -> bytes:
    """The frame that holds the message. Raises ProtocolError if it is too long for one."""
    content = _encode(message)
    if len(content) > MOST_FRAME_BYTES:
        raise ProtocolError(f"a frame of {len(content)} bytes, at most {MOST_FRAME_BYTES} are allowed")
    return LENGTH.pack(len(content)) + content


class Frames:
    """Cuts the bytes that arrive on one connection into the contents of frames."""

    def __init__(self) -> None:
        self._rest = bytearray()
        self._wanted = LENGTH.size
        """So many bytes are needed before there is another frame."""

    def feed(self, chunk: bytes) -> list[bytes]:
        """Take in the next bytes, and return the frames that are complete. Raises ProtocolError for a frame that is too
        long."""
        if self._rest:
            self._rest += chunk
            if len(self._rest) < self._wanted:
                return []
            chunk = bytes(self._rest)
            self._rest.clear()
        found, begin, size = [], 0, len(chunk)
        while (end := begin + LENGTH.size) <= size:
            length: int = LENGTH.unpack_from(chunk, begin)[0]
            if length > MOST_FRAME_BYTES:
                raise ProtocolError(f"a frame of {length} bytes, at most {MOST_FRAME_BYTES} are allowed")
            end += length
            if end > size:
                break
            found.append(chunk[begin + LENGTH.size : end])
            begin = end
        self._rest += chunk[begin:]
        self._wanted = end - begin
        return found


def pack_keys(keys: Sequence[BlockKey]) -> bytes:
    """Keys as one bin field. Of a longer chain the beginning is kept."""
    kept = keys[:MOST_KEYS]
    return struct.pack(f"<{len(kept)}Q", *kept)


def unpack_keys(field: bytes) -> tuple[BlockKey, ...]:
    """The reverse of `pack_keys`. Raises ProtocolError."""
    if len(field) % KEY_BYTES or len(field) > MOST_KEYS * KEY_BYTES:
        raise ProtocolError(f"{len(field)} bytes of keys, a multiple of {KEY_BYTES} was expected")
    return struct.unpack(f"<{len(field) // KEY_BYTES}Q", field)


def pack_text(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def unpack_text(field: bytes) -> str:
    """The reverse of `pack_text`. Raises ProtocolError."""
    try:
        return field.decode("utf-8", "surrogatepass")
    except UnicodeDecodeError:
        raise ProtocolError("a text that is not UTF-8") from None
