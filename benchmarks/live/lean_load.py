"""A load generator that costs next to nothing, for comparing routers that are faster than a web framework.

`load.py` runs on aiohttp and keeps every piece of an answer with its time: 190 us of CPU for a chat and 300 us for a
stream of 20 chunks, while the router has to share the cores with it. Here requests are joined from bytes that were made
beforehand, connections are kept alive, and an answer is read to its end without being parsed: 30 us for a chat.
Every answer is still checked, for its status and for all that the engine said.
"""

from __future__ import annotations

import asyncio
import json
import random
import re
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import cast
from urllib.parse import urlsplit

from benchmarks.live.instant_engine import TEXT

GROUPS = 8
SYSTEM_BYTES = 1024
TIMEOUT_S = 120.0

_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_CHUNKED = re.compile(rb"\r\ntransfer-encoding: *chunked", re.IGNORECASE)
_PIECE, _DONE = b'" word"', b"data: [DONE]"
_LAST_CHUNK = b"\r\n0\r\n\r\n"


# --- what is asked ----------------------------------------------------------------------------------------------------


class Chats:
    """Chats of one size, each with one of eight system prompts of 1 KB and a question that never comes again.

    chunks: how many pieces of a stream to ask for; 0 for whole answers. fields: more of the request's body.
    """

    def __init__(self, prompt_bytes: int, chunks: int, **fields: object) -> None:
        self.chunks = chunks
        rng = random.Random(prompt_bytes)
        systems = [f"You are assistant {group}. " + _words(rng, SYSTEM_BYTES) for group in range(GROUPS)]
        question = _words(rng, prompt_bytes - SYSTEM_BYTES - 16)
        requests = [_request(system[:SYSTEM_BYTES], question, chunks, fields) for system in systems]
        self._parts = [tuple(request.split(b"{number}")) for request in requests]

    def request(self, number: int) -> bytes:
        """The same for the same number, and another question for every other."""
        scattered = number * 0x9E3779B97F4A7C15 % 2**64  # so that neither groups nor first letters come in their order
        before, after = self._parts[(scattered >> 32) % GROUPS]
        return b"%b%016x%b" % (before, scattered, after)


def _words(rng: random.Random, length: int) -> str:
    words = ["".join(rng.choices("etaoinshrdlu", k=rng.randint(2, 9))) for _ in range(500)]
    return " ".join(rng.choices(words, k=length // 2))[:length]


def _request(system: str, question: str, chunks: int, fields: Mapping[str, object]) -> bytes:
    asked: dict[str, object] = {"model": "m", "max_tokens": chunks or 16, "stream": chunks > 0, **fields}
    asked["messages"] = [
        {"role": "system", "content": system},
        {"role": "user", "content": "{number}" + question},
    ]
    body = json.dumps(asked, separators=(",", ":")).encode()
    length = len(body) - len("{number}") + 16
    lines = ("POST /v1/chat/completions HTTP/1.1", "host: 127.0.0.1", "content-type: application/json")
    return "\r\n".join((*lines, f"content-length: {length}", "", "")).encode() + body


# --- how it is asked --------------------------------------------------------------------------------------------------


class Connection(asyncio.Protocol):
    """A connection that is kept alive and has one request at a time."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._lost: str | None = None
        self._begin()

    def _begin(self) -> None:
        self._parts: list[bytes] = []
        self._left: int | None = None
        self._chunked = False
        self._tail = b""
        self.first_byte_s = 0.0
        self._answer: asyncio.Future[bytes] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.WriteTransport, transport)

    def connection_lost(self, error: Exception | None) -> None:
        self._lost = f"the connection was lost: {error!r}"
        if self._answer and not self._answer.done():
            self._answer.set_exception(ConnectionError(self._lost))

    def close(self) -> None:
        self._transport.close()

    @property
    def received(self) -> bytes:
        """What has come of the last answer so far."""
        return b"".join(self._parts)

    async def ask(self, request: bytes) -> bytes:
        """The answer as it came, head and all. Raises ConnectionError."""
        if self._lost:
            raise ConnectionError(self._lost)
        self._begin()
        self._answer = self._loop.create_future()
        self._transport.write(request)
        return await self._answer

    def data_received(self, data: bytes) -> None:
        if self._answer is None:
            self._lost = f"bytes that nobody asked for: {data[:200]!r}"
        if not self._parts:
            self.first_byte_s = time.perf_counter()
        self._parts.append(data)
        if self._chunked:
            self._tail = (self._tail + data)[-len(_LAST_CHUNK) :]
        elif self._left is not None:
            self._left -= len(data)
        else:
            self._read_head()
        if self._answer and (self._left == 0 or self._tail == _LAST_CHUNK):
            answer, self._answer = self._answer, None
            answer.set_result(b"".join(self._parts))

    def _read_head(self) -> None:
        data = b"".join(self._parts)
        end = data.find(b"\r\n\r\n")
        if end < 0:
            return
        if length := _LENGTH.search(data, 0, end):
            self._left = int(length[1]) - (len(data) - end - 4)
        elif _CHUNKED.search(data, 0, end):
            self._chunked, self._tail = True, data[-len(_LAST_CHUNK) :]
        else:
            self.connection_lost(ValueError(f"an answer of unknown length: {data[:200]!r}"))


@asynccontextmanager
async def connected(urls: Sequence[str], count: int) -> AsyncIterator[list[Connection]]:
    """So many connections, to the URLs in turn."""
    connections: list[Connection] = []
    try:
        for index in range(count):
            address = urlsplit(urls[index % len(urls)])
            loop = asyncio.get_running_loop()
            connections.append(
                (await loop.create_connection(Connection, address.hostname or "", address.port or 80))[1]
            )
        yield connections
    finally:
        for connection in connections:
            connection.close()


@dataclass
class Load:
    """What a closed loop saw: of every answer the seconds until its first byte and its end."""

    wall_s: float = 0.0
    latency_s: list[float] = field(default_factory=list)
    first_byte_s: list[float] = field(default_factory=list)


async def closed_loop(
    connections: Sequence[Connection], chats: Chats, next_number: Callable[[], int], seconds: float
) -> Load:
    """Each connection asks until so many seconds are over, once at least, and reads its last answer to the end.

    Raises ConnectionError, ValueError for a wrong answer, and TimeoutError.
    """
    found, start = Load(), time.perf_counter()

    async def run(connection: Connection) -> None:
        while True:
            request = chats.request(next_number())
            sent = time.perf_counter()
            answer = await connection.ask(request)
            now = time.perf_counter()
            found.latency_s.append(now - sent)
            found.first_byte_s.append(connection.first_byte_s - sent)
            check(answer, chats.chunks)
            if now - start >= seconds:
                return

    async with asyncio.timeout(seconds + TIMEOUT_S):
        await asyncio.gather(*map(run, connections))
    found.wall_s = time.perf_counter() - start
    return found


def check(answer: bytes, chunks: int) -> None:
    """Raise ValueError unless it is a whole answer, or a stream of so many pieces."""
    right = answer.startswith(b"HTTP/1.1 200 ")
    if chunks:
        right = right and (_is_stream(answer, chunks) or _is_stream(unchunked(answer), chunks))
    else:
        right = right and TEXT.encode() in answer
    if not right:
        raise ValueError(f"a wrong answer of {len(answer)} bytes: {answer[:200]!r} ... {answer[-200:]!r}")


def _is_stream(answer: bytes, chunks: int) -> bool:
    return answer.count(_PIECE) == chunks and _DONE in answer


def unchunked(answer: bytes) -> bytes:
    """A router may cut chunks anew, and through the words that are counted."""
    _, _, rest = answer.partition(b"\r\n\r\n")
    parts = []
    while rest:
        size, _, rest = rest.partition(b"\r\n")
        parts.append(rest[: int(size, 16)])
        rest = rest[int(size, 16) + 2 :]
    return b"".join(parts)
