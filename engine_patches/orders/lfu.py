"""LFU: the least often accessed leaf goes first; among equals, the least recently released.

The O(1) scheme of a list for each frequency is described in Shah, Mitra, Matani, "An O(1) algorithm for implementing
the LFU cache eviction scheme", 2010 (arXiv 2110.11602). Here the lists that are not empty are the bits of an int, so
the least frequency is its lowest bit.

A key's count outlives its eviction: without that, in a working set larger than the cache most counts are one. Those
of a bounded number of evicted keys are kept, first in first out.

On leaves: an access to a key is one to all its ancestors, so a key is counted at least as often as its children
while it is cached, and of equals the child is released first: nearly always the least key is a leaf. Where it is
not (a count came back with a ghost), `ByRelease` sets it aside.

Parameters: counts up to 1023 (so at most 1023 lists); ghosts: 4 for each block. O(1) amortised.
"""

from collections.abc import Iterator
from typing import ClassVar

from engine_patches.orders.structures.ghosts import Ghosts
from engine_patches.orders.structures.ring import ByRelease, Linked, Ring

MOST_COUNT = 1023
GHOSTS_PER_BLOCK = 4


class LFU(ByRelease):
    """`node.count`: accesses."""

    name: ClassVar[str] = "lfu"
    randomized: ClassVar[bool] = False

    def __init__(self, num_blocks: int, seed: int | None = None) -> None:  # noqa: ARG002  (no chance in this order)
        super().__init__(num_blocks)
        self._ghosts = Ghosts(GHOSTS_PER_BLOCK * num_blocks)
        self._rings: dict[int, Ring] = {}  # by count: at most MOST_COUNT
        self._filled = 0  # bit c: ring c may hold a leaf; where the bit is 0 it holds none

    def _touch(self, node: Linked) -> None:
        if node.count == 0:
            node.count = max(0, self._ghosts.take(node.key))
        node.count = min(node.count + 1, MOST_COUNT)

    def _ring(self, node: Linked) -> Ring:
        count = node.count or 1  # a block without a key, which nobody counts: as long as any other
        ring = self._rings.get(count)
        if ring is None:
            ring = self._rings[count] = Ring()
        self._filled |= 1 << count
        return ring

    def _draw(self) -> Linked:
        while self._filled:
            bit = self._filled & -self._filled
            node = self._oldest_leaf(self._rings[bit.bit_length() - 1])
            if node is not None:
                if node.key is not None:
                    self._ghosts.add(node.key, node.count)
                return node
            self._filled ^= bit
        raise IndexError("no free block")

    def _leaves(self, after: Linked | None = None) -> Iterator[Linked]:
        for count in range(1 if after is None else after.count or 1, self._filled.bit_length()):
            if count in self._rings:
                yield from (node for node in self._rings[count].walk(after) if node.place >= 0)
                after = None
