"""The load of `endurance`: clients that ask for one stream of numbered chunks after the other, and check every byte.

What an engine says is known beforehand (`numbered_engine`), so a stream is right if it is that, to the byte, and
without the usage unless this client has asked for it. If it is not, `faults_in` tells what is wrong.
"""

from __future__ import annotations

import asyncio
import random
import re
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache

from benchmarks.live.lean_load import Chats, Connection, connected, unchunked
from benchmarks.live.numbered_engine import DONE, numbered, usage_event

LEAVING, ASKING_USAGE = 0.1, 0.25
"""The shares of streams whose client leaves in the middle, and whose client asks for the usage."""
PROMPT_BYTES = 2048
LATE_S = 60.0  # that a stream may take longer than its gaps

_NUMBER = re.compile(rb'"content":"(\d+) ')


@lru_cache(maxsize=16)
def stream_of(chunks: int, usage: bool) -> bytes:
    """All that a client should see of a stream."""
    return b"".join(map(numbered, range(chunks))) + (usage_event(chunks) if usage else b"") + DONE


def faults_in(answer: bytes, chunks: int, *, usage: bool, left: bool = False) -> set[str]:
    """What is wrong with a stream of so many chunks; nothing: it is right.

    answer: the body as the engine would have said it. usage: the client has asked for it. left: the client left before
    the end, so a part of the stream from its beginning is right.
    """
    whole = stream_of(chunks, usage)
    if answer == whole or (left and whole.startswith(answer)):
        return set()
    numbers = [int(number) for number in _NUMBER.findall(answer)]
    distinct = list(dict.fromkeys(numbers))
    expected = max(numbers, default=-1) + 1 if left else chunks
    found = {
        "lost": not set(range(expected)) <= set(numbers),
        "doubled": len(distinct) < len(numbers),
        "out of order": distinct != sorted(distinct),
        "too many": max(numbers, default=-1) >= chunks,
        "usage": answer.count(b'"usage"') != usage and not (left and b'"usage"' not in answer),
        "end": answer.count(DONE) != 1 and not (left and DONE not in answer),
    }
    return {name for name, wrong in found.items() if wrong} or {"altered"}


@dataclass
class Tally:
    """What the clients saw: streams to their end, streams that they left, chunks, and faults by their kind."""

    whole: int = 0
    left: int = 0
    chunks: int = 0
    with_usage: int = 0
    faults: Counter[str] = field(default_factory=Counter)

    def take(self, answer: bytes, chunks: int, *, usage: bool, left: bool = False) -> None:
        """Count and check an answer as it came, head and all."""
        if left:
            self.left += 1
        else:
            self.whole += 1
            self.with_usage += usage
        head, _, _ = answer.partition(b"\r\n\r\n")
        if head and not head.startswith(b"HTTP/1.1 200 "):
            self.faults["refused"] += 1
            return
        events = unchunked(answer)
        self.chunks += len(_NUMBER.findall(events))
        self.faults.update(faults_in(events, chunks, usage=usage, left=left))


class Clients:
    """Clients of the gateway at `url`, each with one stream at a time over a connection that it keeps.

    chunks, gap_s: of a stream. next_number: a number for each prompt.
    """

    def __init__(self, url: str, chunks: int, gap_s: float, next_number: Callable[[], int]) -> None:
        self.tally = Tally()
        self._url, self._chunks, self._stream_s = url, chunks, (chunks - 1) * gap_s
        self._next_number, self._rng = next_number, random.Random(0)
        self._chats = {
            False: Chats(PROMPT_BYTES, chunks),
            True: Chats(PROMPT_BYTES, chunks, stream_options={"include_usage": True}),
        }

    async def run(self, count: int, seconds: float) -> None:
        """So many clients ask until so many seconds are over, and read their last streams to the end."""
        end_s = time.monotonic() + seconds
        await asyncio.gather(*(self._client(end_s) for _ in range(count)))

    async def _client(self, end_s: float) -> None:
        await asyncio.sleep(self._rng.uniform(0, self._stream_s))  # so that the chunks of all do not come at once
        while time.monotonic() < end_s:
            try:
                async with connected([self._url], 1) as (connection,):
                    while time.monotonic() < end_s and await self._stream(connection):
                        pass
            except OSError as error:
                self.tally.faults[f"broken: {error}"] += 1
                await asyncio.sleep(1.0)

    async def _stream(self, connection: Connection) -> bool:
        """Ask for one stream and check it. Returns whether the connection carries another. Raises OSError."""
        usage = self._rng.random() < ASKING_USAGE
        leaves = self._rng.random() < LEAVING
        stays_s = self._rng.uniform(0.1, 0.9) * self._stream_s if leaves else self._stream_s + LATE_S
        try:
            async with asyncio.timeout(stays_s):
                await connection.ask(self._chats[usage].request(self._next_number()))
        except TimeoutError:
            if not leaves:
                self.tally.faults["late"] += 1
            self.tally.take(connection.received, self._chunks, usage=usage, left=leaves)
            return False
        self.tally.take(connection.received, self._chunks, usage=usage)
        return True
