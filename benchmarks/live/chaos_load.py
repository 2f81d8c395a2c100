"""The load of `chaos`: clients that ask for streams and whole answers in turn, check each byte, and may leave."""

from __future__ import annotations

import asyncio
import itertools
import random
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from benchmarks.live.instant_engine import TEXT
from benchmarks.live.lean_load import Chats, Connection, connected, unchunked
from benchmarks.live.numbered_load import stream_of

PROMPT_BYTES, CHUNKS = 2048, 6
LATE_S = 120.0
STAYS_S = 0.05  # the longest time after which a client leaves that leaves


@dataclass
class Tally:
    """What the clients saw. lost: by what came in place of the answer."""

    requests: int = 0
    well: int = 0
    broken: int = 0
    left: int = 0
    lost: Counter[str] = field(default_factory=Counter)

    def take(self, found: str) -> None:
        self.requests += 1
        if found in ("well", "broken", "left"):
            setattr(self, found, getattr(self, found) + 1)
        else:
            self.lost[found] += 1

    def figures(self) -> dict[str, Any]:
        return {**vars(self), "lost": dict(self.lost)}


def judge(answer: bytes, chunks: int) -> str:
    """What an answer is: `well`, `broken` (a stream that ends with an error event), or why it is lost.

    answer: as it came, head and all. chunks: of the stream that was asked for; 0: a whole answer was.
    """
    status = answer[len(b"HTTP/1.1 ") :][:3].decode("latin-1")
    if status != "200":
        return f"status {status}"
    if not chunks and TEXT.encode() in answer:
        return "well"
    if b"\r\ntransfer-encoding: chunked\r\n" not in answer:
        return "altered"
    events = unchunked(answer)
    if events == stream_of(chunks, usage=False):
        return "well"
    return "broken" if b'{"error"' in events.rstrip(b"\n").rpartition(b"\n\n")[2] else "altered"


class Load:
    """Clients of the gateway at `url`. Each has one request at a time, over a connection that it keeps if it can."""

    def __init__(self, url: str) -> None:
        self.url, self.tally = url, Tally()
        self._chats = (Chats(PROMPT_BYTES, CHUNKS), Chats(PROMPT_BYTES, 0))
        self._numbers, self._rng = itertools.count(), random.Random(0)

    def request(self, number: int) -> tuple[bytes, int]:
        """The request of that number, and of how many chunks its stream is; 0: it wants a whole answer."""
        chats = self._chats[number % 2]
        return chats.request(number), chats.chunks

    async def run(self, requests: int, clients: int = 10, *, leaving: float = 0.0) -> None:
        """Ask so many times. leaving: the share of requests whose client leaves before their end."""
        todo = iter(range(requests))
        await asyncio.gather(*(self._client(todo, leaving) for _ in range(clients)))

    async def run_for(self, seconds: float, clients: int = 10) -> None:
        """Ask for so long, and read the last answers to the end."""
        end_s = time.monotonic() + seconds
        todo = iter(lambda: time.monotonic() >= end_s, True)
        await asyncio.gather(*(self._client(todo, 0.0) for _ in range(clients)))

    async def _client(self, todo: Iterator[Any], leaving: float) -> None:
        for _ in todo:  # a connection for as many requests as it carries
            try:
                async with connected([self.url], 1) as (connection,):
                    while await self._ask(connection, leaving) and next(todo, None) is not None:
                        pass
            except OSError as error:
                self.tally.take(f"no connection: {error}")

    async def _ask(self, connection: Connection, leaving: float) -> bool:
        """Ask once. Return whether the connection carries another request."""
        request, chunks = self.request(next(self._numbers))
        leaves = self._rng.random() < leaving
        try:
            async with asyncio.timeout(self._rng.uniform(0, STAYS_S) if leaves else LATE_S):
                found = judge(await connection.ask(request), chunks)
        except TimeoutError:
            found = "left" if leaves else "late"
        except ConnectionError:
            found = "the connection was lost"
        self.tally.take(found)
        return found in ("well", "broken") or found.startswith("status")
