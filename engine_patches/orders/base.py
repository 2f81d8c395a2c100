"""What an eviction order is told, and what it answers.

A pool holds blocks 0 .. n-1. A block is *free* (its content may be dropped) or *in use* (a running request
needs it). A block may carry a *key*: the hash of all tokens up to its end, so a key names a prefix and has
one parent. At the start every block is free, none has a key, and they are popped in the order 0, 1, 2 ...

    pop -> (in use) cache ... cache -> release -> (free, with its key) -> hit -> (in use) ...
                                                                      `-> pop: evicted

The adapter drives an order inside vLLM; anything else that names its blocks by ints (a simulator, a test)
drives the same object the same way. Two blocks may carry one key: requests that compute one prefix at the
same time each keep their copy. Groups of layers that are cached apart have different keys for the same
tokens, so an order needs no notion of a group. In every order every call but `clear` and `walk` is O(1) for
each block.
"""

from collections.abc import Hashable, Iterator, Sequence
from typing import ClassVar, Protocol

Key = Hashable


class Defaults:
    """The counters of a new order, and the verbs that most orders leave alone. A subclass that computes a counter
    overrides it by a property."""

    free: int
    cached = hits = misses = evictions = hints = 0
    phases = marked = 0
    fallback = False
    fallbacks = 0

    @property
    def shadow_misses(self) -> int:
        return 0

    def assign(self, block: int, session: Hashable, arrival_s: float) -> None:
        pass

    def expect(self, session: Hashable, seconds: float | None) -> None:
        pass


class EvictionOrder(Protocol):
    """Decides which free block is reused next. Not thread-safe; the counters may be read from any thread.

    - `free`: blocks that are free now
    - `cached`: blocks that carry a key, copies counted
    - `hits`: calls of `hit`
    - `misses`: calls of `cache` with a key that no block carried
    - `evictions`: keys whose last copy was popped to make room
    - `phases`, `marked`: phase changes so far, and keys marked in this phase; 0 in an order without phases
    - `fallback`, `fallbacks`: whether a guard decides now, and how often one took over; false and 0 without a guard
    - `shadow_misses`: misses of the order that the guard follows; 0 without a guard
    - `hints`: calls of `expect` with a session that the order knows; 0 in an order that heeds none
    - `randomized`: whether the order makes random choices
    """

    name: ClassVar[str]
    randomized: ClassVar[bool]
    free: int
    cached: int
    hits: int
    misses: int
    evictions: int
    hints: int

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
        """`num_blocks` > 0. `seed` fixes the order's own random numbers; None takes one from the operating system."""
        ...

    def cache(self, block: int, key: Key, parent: Key | None, position: int) -> None:
        """A block in use is now full and gets `key`; it is number `position` (from 0) of its request.

        `parent` is the key of the block before it; it is None for a first block, and if that block has no key.
        The same call again changes nothing.
        """
        ...

    def uncache(self, block: int) -> None:
        """The block, free or in use, loses its key for a reason other than `pop`. Without a key, nothing happens."""
        ...

    def move(self, source: int, target: int) -> None:
        """The key of `source`, if any, passes to `target`, which has none. Both are in use."""
        ...

    def hit(self, block: int) -> None:
        """A request reuses a cached block, free or in use; afterwards it is in use."""
        ...

    def pin(self, block: int) -> None:
        """The block is taken into use, but not because a request reuses it. Nothing happens if it is in use already."""
        ...

    def release(self, blocks: Sequence[int]) -> None:
        """Blocks in use become free and are worth keeping. They are those of one request, deepest first.

        With several groups they come group after group. A block without a key that is given back here is still
        read by somebody, so it is kept as long as any other.
        """
        ...

    def discard(self, blocks: Sequence[int]) -> None:
        """Blocks in use become free with a worthless content: they are reused first, in this order."""
        ...

    def pop(self) -> int:
        """Return the next victim, which is in use and has no key afterwards. IndexError if no block is free."""
        ...

    def walk(self, after: int | None = None) -> Iterator[int]:
        """Yield each free block once, in the order of eviction, starting behind `after` if that is given and free.

        It changes nothing, and must not be continued after a change. A randomized order yields one of the orders
        of eviction that are equally likely.
        """
        ...

    def assign(self, block: int, session: Hashable, arrival_s: float) -> None:
        """The request that uses `block`, its deepest one with a key so far, is of `session` and came at `arrival_s`.

        Times are seconds on one clock, whichever it is. The same call again changes nothing. An order may ignore it.
        """
        ...

    def expect(self, session: Hashable, seconds: float | None) -> None:
        """A hint: the next request of `session` comes about so long after the last answer to it; None: none comes.

        Nothing happens if the session is not known. A hint may be wrong, late or missing.
        """
        ...

    def clear(self) -> None:
        """Every key becomes void. Blocks stay free or in use as they are. O(n)."""
        ...
