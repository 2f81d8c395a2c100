"""LFU: the victim is the least often accessed leaf; among equals, the least recently released one.

The O(1) scheme of a list for each frequency is described in Shah, Mitra, Matani, "An O(1) algorithm for implementing
the LFU cache eviction scheme", 2010 (arXiv 2110.11602). Here the bits of an int say which lists may not be empty, so
its lowest bit is the least frequency.

A key's count outlives its eviction: otherwise most counts would be one in a working set larger than the cache. The
counts of a bounded number of evicted keys are kept, first in first out.

How it is carried over to leaves: an access to a key is one to all its ancestors, so a key is counted at least as often
as its children while it is cached, and of equals the child is released first. So the least key is nearly always a leaf.
Where it is not (a count came back with a ghost), `RecencyOrder` removes it until it is one.

Parameters: counts up to 1023 (so at most 1023 lists); 4 ghosts for each block. O(1) amortised.
"""

from collections.abc import Iterator
from typing import ClassVar

from engine_patches.orders.structures.ghost_list import GhostList
from engine_patches.orders.structures.ring import RecencyOrder, Ring, RingNode

MOST_COUNT = 1023
GHOSTS_PER_BLOCK = 4


class LFU(RecencyOrder):
    """`node.count` is the number of accesses, up to MOST_COUNT."""

    name: ClassVar[str] = "lfu"
    randomized: ClassVar[bool] = False

    def __init__(self, num_blocks: int, seed: int | None = None) -> None:  # noqa: ARG002  (no chance in this order)
        super().__init__(num_blocks)
        self._ghosts = GhostList(GHOSTS_PER_BLOCK * num_blocks)
        self._rings: dict[int, Ring] = {}  # by count: at most MOST_COUNT
        self._filled = 0  # bit c is set if the ring of count c may hold a leaf

    def _on_access(self, node: RingNode) -> None:
        if node.count == 0:
            node.count = max(0, self._ghosts.pop(node.key))
        node.count = min(node.count + 1, MOST_COUNT)

    def _ring(self, node: RingNode) -> Ring:
        count = node.count or 1  # a block without a key has no count: it is kept as long as a key accessed once
        ring = self._rings.get(count)
        if ring is None:
            ring = self._rings[count] = Ring()
        self._filled |= 1 << count
        return ring

    def _choose_victim(self) -> RingNode:
        while self._filled:
            bit = self._filled & -self._filled
            node = self._oldest_leaf(self._rings[bit.bit_length() - 1])
            if node is not None:
                if node.key is not None:
                    self._ghosts.add(node.key, node.count)
                return node
            self._filled ^= bit
        raise IndexError("no free block")

    def _walk_leaves(self, after: RingNode | None = None) -> Iterator[RingNode]:
        for count in range(1 if after is None else after.count or 1, self._filled.bit_length()):
            if count in self._rings:
                yield from (node for node in self._rings[count].walk(after) if node.leaf_index >= 0)
                after = None
