"""What an eviction order is told, and what it answers.

A pool holds blocks 0 .. n-1. A block is *free* (its content may be dropped) or *in use* (a running request
needs it). A block may carry a *key*: the hash of all tokens up to its end, so a key names a prefix and has
one parent. At the start every block is free, none has a key, and they go out in the order 0, 1, 2 ...

    pop -> (in use) cache ... cache -> release -> (free, with its key) -> hit -> (in use) ...
                                                                      `-> pop: evicted

The adapter drives an order inside vLLM; anything else that names its blocks by ints (a simulator, a test)
drives the same object the same way. Two blocks may carry one key: requests that compute one prefix at the
same time each keep their copy. Groups of layers that are cached apart have different keys for the same
tokens, so an order needs no notion of a group. Every call is O(1) a block in every order, `clear` and `walk`
apart.
"""

from collections.abc import Hashable, Iterator, Sequence
from typing import ClassVar, Protocol

Key = Hashable


class Counters:
    """The counters of a new order. One that a subclass computes is a property there."""

    free: int
    cached = hits = misses = evictions = 0
    phases = marked = 0
    fallback = False
    fallbacks = 0

    @property
    def shadow_misses(self) -> int:
        return 0


class EvictionOrder(Protocol):
    """Decides which free block is reused next. Not thread-safe; the counters may be read from any thread.

    `free`: blocks now free. `cached`: blocks that carry a key, copies counted. `hits`: calls of `hit`.
    `misses`: keys cached that no block carried. `evictions`: keys whose last copy was popped to make room.
    `phases`: phase changes so far, and `marked`: keys marked in this phase; 0 in an order without phases.
    `fallback`: a guard decides now, `fallbacks`: how often it took over, `shadow_misses`: misses of the order
    it follows; false and 0 in an order without one. `randomized`: the order draws lots.
    """

    name: ClassVar[str]
    randomized: ClassVar[bool]
    free: int
    cached: int
    hits: int
    misses: int
    evictions: int

    @property
    def phases(self) -> int: ...
    @property
    def marked(self) -> int: ...
    @property
    def fallback(self) -> bool: ...
    @property
    def fallbacks(self) -> int: ...
    @property
    def shadow_misses(self) -> int: ...

    def __init__(self, num_blocks: int, seed: int | None = None) -> None:
        """`num_blocks` > 0; `seed` fixes the order's own random numbers (None: from the operating system)."""
        ...

    def cache(self, block: int, key: Key, parent: Key | None, position: int) -> None:
        """A block in use is now full and gets `key`; it is number `position` (from 0) of its request.

        `parent` is the key of the block before it; None for a first block, and where that block has no key.
        The same call again is harmless.
        """
        ...

    def uncache(self, block: int) -> None:
        """The block loses its key, free or in use, for a reason other than `pop`. Harmless if it has none."""
        ...

    def move(self, source: int, target: int) -> None:
        """The key of `source`, if any, passes to `target`, which has none. Both are in use."""
        ...

    def hit(self, block: int) -> None:
        """A request reuses a cached block, free or in use; afterwards it is in use."""
        ...

    def pin(self, block: int) -> None:
        """The block leaves the free ones, but not because a request reuses it. Harmless if it is in use."""
        ...

    def release(self, blocks: Sequence[int]) -> None:
        """Blocks in use become free and are worth keeping: those of one request, deepest first.

        With several groups, group after group. A block without a key given back here is still read by
        somebody: keep it as long as any other.
        """
        ...

    def discard(self, blocks: Sequence[int]) -> None:
        """Blocks in use become free with a worthless content: reuse them first, in this order."""
        ...

    def pop(self) -> int:
        """The next victim: afterwards it is in use and has no key. IndexError if no block is free."""
        ...

    def walk(self, after: int | None = None) -> Iterator[int]:
        """The free blocks, each once, in the order of eviction; from behind `after` if given and free.

        Changes nothing, and must not be continued after a change. An order that draws lots gives one that
        is as likely as any other.
        """
        ...

    def clear(self) -> None:
        """Every key is void. Blocks keep their state, free or in use. O(n)."""
        ...
