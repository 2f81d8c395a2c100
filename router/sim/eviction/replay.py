"""Replays requests over an eviction order, one request at a time: its hit rate and what its decisions cost.

A request asks for a path of blocks. The longest cached prefix of it is hit; for each other block a victim is popped,
the block is computed and cached; then all are released, the deepest first. An *access* is one block of a request.

As in an engine a key names a whole prefix: a block behind another parent is another block. In a trace of a prefix
cache each id has one parent, so there ids and keys are the same. A block that stands on its line twice is in use the
second time: a hit. Of a request longer than the cache the first blocks are held, and the others are misses.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from time import thread_time
from typing import Protocol

from engine_patches.orders import EvictionOrder
from router.sim.trace import Block, Request


@dataclass(frozen=True, slots=True)
class ReplayResult:
    """What a replay counted. `seconds`: of CPU, spent deciding. `fallback_requests`: ended with a guard in charge."""

    requests: int
    accesses: int
    hits: int
    seconds: float
    fallback_requests: int

    @property
    def hit_rate(self) -> float:
        """Hits per access, 0 to 1."""
        return self.hits / max(1, self.accesses)

    @property
    def us_per_access(self) -> float:
        return 1e6 * self.seconds / max(1, self.accesses)

    @property
    def fallback_share(self) -> float:
        """The part of the requests that ended with the guard in charge, 0 to 1."""
        return self.fallback_requests / max(1, self.requests)


class PrefixCache(Protocol):
    """What serves requests from a cache. `seconds`: of CPU, spent deciding so far."""

    seconds: float

    @property
    def fallback(self) -> bool:
        """A guard decides now."""
        ...

    def serve(self, request: Request) -> int:
        """One request from admission to release. Its hits."""
        ...


def replay(server: PrefixCache, requests: Iterable[Request]) -> ReplayResult:
    """Serves all requests in turn."""
    count = accesses = hits = fallback_requests = 0
    for request in requests:
        hits += server.serve(request)
        count += 1
        accesses += len(request.blocks)
        fallback_requests += server.fallback
    return ReplayResult(count, accesses, hits, server.seconds, fallback_requests)


def prefix_keys(request: Request, capacity: int) -> tuple[list[int], int]:
    """The keys of the blocks that a cache of `capacity` holds while the request runs, and its accesses beside these.

    Keys: of each block once, of the first `capacity` ones, 64-bit hashes of all blocks up to it. Accesses beside: how
    often the request comes back to one of them, which hits.
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
    """A prefix cache under a new `order`, as large as it. Holds at most so many keys.

    `evicted`: the ids of the blocks that the last request pushed out, the first one first.
    """

    def __init__(self, order: EvictionOrder) -> None:
        self.order, self.capacity = order, order.free
        self.seconds = 0.0
        self.evicted: list[Block] = []
        self._block_of: dict[int, int] = {}  # of the order's block that holds a key
        self._held: list[tuple[int, Block] | None] = [None] * self.capacity  # by number: key and id

    @property
    def fallback(self) -> bool:
        return self.order.fallback

    def serve(self, request: Request) -> int:
        """One request from admission to release. Its hits."""
        keys, more = prefix_keys(request, self.capacity)
        numbers = []
        for key in keys:
            number = self._block_of.get(key)
            if number is None:
                break
            numbers.append(number)
        hits = len(numbers)
        self._drive(keys, numbers)

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

    def _drive(self, keys: list[int], numbers: list[int]) -> None:
        """The order's verbs, which alone are timed. `numbers`: of the cached prefix; those of the rest are added."""
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
        order.release(numbers[::-1])
        self.seconds += thread_time() - start
