"""SIEVE: one queue, a hand that moves along it, and one bit for each key.

Zhang, Yang, Yue, Vigfusson, Rashmi, "SIEVE is Simpler than LRU: an Efficient Turn-Key Eviction Algorithm for Web
Caches", NSDI 2024. New keys join at one end; a hit sets the key's bit and moves nothing. The hand goes from the
oldest key to the newest and around again. It clears a bit that is set and leaves that key; the first key whose bit is
not set is the victim, and the hand stays there.

How it is carried over to leaves: the queue holds the leaves, so a chain of keys is in it as one, its last key. When
that is evicted, its parent takes its place directly behind the hand, and is judged in the next round. So a round takes
one block from each chain that nobody used; a place before the hand would take the whole chain at once. A key that is in
use when the hand comes by leaves the queue, and joins it anew when it is released.

Parameters: none. O(1) amortised: the hand passes a key at the cost of the hit that set its bit, or of the release that
put it there.
"""

from collections.abc import Iterator
from typing import ClassVar

from engine_patches.orders.structures.ring import FifoOrder, Ring, RingNode


class SIEVE(FifoOrder):
    """`node.mark` is the bit, or -1 for a key that is not accessed yet."""

    name: ClassVar[str] = "sieve"
    randomized: ClassVar[bool] = False

    def __init__(self, num_blocks: int, seed: int | None = None) -> None:  # noqa: ARG002  (no chance in this order)
        super().__init__(num_blocks)
        self._queue = Ring()
        self._hand = self._queue.end  # the node to judge next; the ring's end stands for the oldest

    def _on_access(self, node: RingNode) -> None:
        node.mark = 0 if node.mark < 0 else 1

    def _enqueue(self, node: RingNode) -> None:
        lost_child = node.num_children > 0  # the child is still cached but not free any more: it is being evicted
        self._queue.add(node, self._hand if lost_child else None)

    def _remove(self, node: RingNode) -> None:
        if node is self._hand:
            self._hand = node.right
        node.unlink()

    def _choose_victim(self) -> RingNode:
        while self._queue:
            node = self._hand
            self._hand = node.right
            if node is self._queue.end:
                continue
            if node.leaf_index < 0:
                node.unlink()
                node.mark = 0
            elif node.mark > 0:
                node.mark = 0
            else:
                return node
        raise IndexError("no free block")

    def _walk_leaves(self, after: RingNode | None = None) -> Iterator[RingNode]:
        """From the hand on and around: first the leaves whose bit is not set, then, in the next round, the others."""
        for mark in (0, 1):
            if after is not None and after.mark > mark:
                continue
            node: RingNode = self._hand if after is None else after.right
            moved = after is not None
            while node is not self._hand or not moved:
                if node.leaf_index >= 0 and (node.mark > 0) == mark:
                    yield node
                node, moved = node.right, True
            after = None
