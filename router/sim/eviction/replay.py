"""The replay of requests over an eviction order, one at a time: the hit rate, and what the decisions of the order cost.

A request asks for a chain of blocks. Its longest cached prefix is hit. For each other block a victim is popped, and the
block is computed and cached in its place. At the end all are released, the deepest one first. An *access* is one block
of a request.

As in an engine, a key names a whole prefix: a block behind another parent is another block. In a trace of a prefix
cache each id has one parent, so there ids and keys are the same. A block that stands on its line twice is in use the
second time, which is a hit. Of a request longer than the cache the first blocks are held, and the others are misses.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from time import thread_time
from typing import Protocol

from engine_patches.orders import EvictionOrder
from router.sim.hints import OFF, Hints
from router.sim.trace import Block, Request


@dataclass(frozen=True, slots=True)
class ReplayResult:
    """What a replay counted."""

    requests: int
    accesses: int
    hits: int
    seconds: float
    """CPU time that the decisions took."""
    fallback_requests: int
    """How many requests ended while the order fell back on its guard."""

    @property
    def hit_rate(self) -> float:
        """Hits per access, 0 to 1."""
        return self.hits / max(1, self.accesses)

    @property
    def us_per_access(self) -> float:
        """CPU time of the decisions per access, microseconds."""
        return 1e6 * self.seconds / max(1, self.accesses)

    @property
    def fallback_share(self) -> float:
        """The part of the requests that ended while the order fell back on its guard, 0 to 1."""
        return self.fallback_requests / max(1, self.requests)


class PrefixCache(Protocol):
    """A cache that serves requests one at a time."""

    seconds: float
    """CPU time that its decisions have taken so far."""

    @property
    def fallback(self) -> bool:
        """Whether a guard decides in the place of the order now."""
        ...

    def serve(self, request: Request) -> int:
        """Serve one request from admission to release, and return its hits."""
        ...


def replay(server: PrefixCache, requests: Iterable[Request]) -> ReplayResult:
    """Serve all requests in turn, and return what was counted."""
    count = accesses = hits = fallback_requests = 0
    for request in requests:
        hits += server.serve(request)
        count += 1
        accesses += len(request.blocks)
        fallback_requests += server.fallback
    return ReplayResult(count, accesses, hits, server.seconds, fallback_requests)


def prefix_keys(request: Request, capacity: int) -> tuple[list[int], int]:
    """Return the keys of the blocks that a cache of `capacity` holds while the request runs, and the repeated accesses.

    There is one key for each different block, of the first `capacity` ones: a 64-bit hash of all blocks up to it. The
    repeated accesses are those that come back to one of these blocks; they are hits.
    """
    blocks = list(dict.fromkeys(request.blocks))[:capacity]
    keys, key = [], 0
    for block in blocks:
        key = hash((key, block))
        keys.append(key)
    if len(blocks) == len(request.blocks):
        return keys, 0
    held = set(blocks)
    return keys, sum(block in held for block in request.blocks) - len(blocks)


class Cache:
    """A prefix cache of as many blocks as the new `order` has. It holds at most one key for each block.

    The order is told of sessions what `hints` say, if the requests have sessions and times.
    """

    def __init__(self, order: EvictionOrder, hints: Hints | None = None) -> None:
        self.order, self.capacity = order, order.free
        self._hints = hints or Hints(OFF, 0)
        self.seconds = 0.0
        self.evicted: list[Block] = []
        """The ids of the blocks that the last request evicted, in the order of their evictions."""
        self._block_of: dict[int, int] = {}  # The number of the block that holds a key.
        self._held: list[tuple[int, Block] | None] = [None] * self.capacity  # The key and the id in each block.

    @property
    def fallback(self) -> bool:
        return self.order.fallback

    def serve(self, request: Request) -> int:
        """Serve one request from admission to release, and return its hits."""
        keys, more = prefix_keys(request, self.capacity)
        numbers = []
        for key in keys:
            number = self._block_of.get(key)
            if number is None:
                break
            numbers.append(number)
        hits = len(numbers)
        now_s, hints = request.arrival_s, self._hints
        if now_s is None or request.session is None:
            self._drive(keys, numbers)
        else:
            hints.arrived(request.session, now_s)
            self._drive(keys, numbers, (request.session, now_s) if hints.names_sessions else None)
            hints.answered(request.session, request.stop, now_s, request.tool, self.order)

        self.evicted.clear()
        ids = islice(dict.fromkeys(request.blocks), hits, None)
        for key, number, block in zip(keys[hits:], numbers[hits:], ids, strict=False):
            old = self._held[number]
            if old is not None:
                del self._block_of[old[0]]
                self.evicted.append(old[1])
            assert key not in self._block_of, "the order evicted a parent before its child"
            self._block_of[key], self._held[number] = number, (key, block)
        return hits + more

    def _drive(self, keys: list[int], numbers: list[int], session: tuple[str, float] | None = None) -> None:
        """Tell the order of the request; this alone is timed. `numbers` are the blocks of its cached prefix, to which
        the blocks of the rest are added. `session`: its name, and when this request came."""
        order = self.order
        hit, pop, cache = order.hit, order.pop, order.cache
        found = len(numbers)
        start = thread_time()
        for number in numbers:
            hit(number)
        for _ in range(found, len(keys)):
            numbers.append(pop())
        for position in range(found, len(keys)):
            cache(numbers[position], keys[position], keys[position - 1] if position else None, position)
        if session is not None and numbers:
            order.assign(numbers[-1], *session)
        order.release(numbers[::-1])
        self.seconds += thread_time() - start
