"""Least recently used: vLLM's own order, step for step.

It is one list of the free blocks. When a request ends, its blocks whose content is kept join at the back, deepest block
first; blocks with a worthless content join at the front. The victim is the front. A reused block leaves from wherever
it stands. This order is the baseline; and because it equals the host's own queue, it shows that the adapter changes
nothing by itself.
"""

from collections.abc import Iterator, Sequence
from typing import ClassVar

from engine_patches.orders.base import Defaults, Key


class LRU(Defaults):
    """A doubly linked list in two flat arrays, where the number n stands for both ends. Verbs: see `EvictionOrder`."""

    name: ClassVar[str] = "lru"
    randomized: ClassVar[bool] = False

    def __init__(self, num_blocks: int, seed: int | None = None) -> None:  # noqa: ARG002  (no chance in this order)
        self.free = num_blocks
        self._end = num_blocks
        # Links of the ring 0, 1, .. n-1, n. A block in use has _next == -1.
        self._next: list[int] = [*range(1, num_blocks + 1), 0]
        self._prev: list[int] = [num_blocks, *range(num_blocks)]
        self._key_of: list[Key | None] = [None] * num_blocks
        self._copies: dict[Key, int] = {}  # blocks that carry a key: at most n entries

    def cache(self, block: int, key: Key, parent: Key | None, position: int) -> None:  # noqa: ARG002
        if self._key_of[block] == key:
            return
        self.uncache(block)
        self._key_of[block] = key
        copies = self._copies.get(key, 0)
        self.misses += copies == 0
        self._copies[key] = copies + 1
        self.cached += 1

    def uncache(self, block: int) -> None:
        key = self._key_of[block]
        if key is None:
            return
        self._key_of[block] = None
        self.cached -= 1
        if self._copies[key] == 1:
            del self._copies[key]
        else:
            self._copies[key] -= 1

    def move(self, source: int, target: int) -> None:
        self._key_of[source], self._key_of[target] = None, self._key_of[source]

    def hit(self, block: int) -> None:
        self.hits += 1
        self.pin(block)

    def pin(self, block: int) -> None:
        if self._next[block] != -1:
            self._unlink(block)

    def release(self, blocks: Sequence[int]) -> None:
        self._insert(blocks, self._prev[self._end])

    def discard(self, blocks: Sequence[int]) -> None:
        self._insert(blocks, self._end)

    def pop(self) -> int:
        block = self._next[self._end]
        if block == self._end:
            raise IndexError("no free block")
        self._unlink(block)
        key = self._key_of[block]
        if key is not None and self._copies[key] == 1:
            self.evictions += 1
        self.uncache(block)
        return block

    def walk(self, after: int | None = None) -> Iterator[int]:
        block = self._next[self._end if after is None or self._next[after] == -1 else after]
        while block != self._end:
            yield block
            block = self._next[block]

    def clear(self) -> None:
        self._key_of = [None] * self._end
        self._copies.clear()
        self.cached = 0

    def _insert(self, blocks: Sequence[int], left: int) -> None:
        right = self._next[left]
        for block in blocks:
            assert self._next[block] == -1, f"block {block} is free already"
            self._next[left], self._prev[block] = block, left
            self._next[block] = right  # until the next block comes between; it also marks this one as free
            left = block
        self._prev[right] = left
        self.free += len(blocks)

    def _unlink(self, block: int) -> None:
        left, right = self._prev[block], self._next[block]
        self._next[left], self._prev[right] = right, left
        self._next[block] = -1
        self.free -= 1
