"""SIEVE: one queue, a hand, and one bit a key.

Zhang, Yang, Yue, Vigfusson, Rashmi, "SIEVE is Simpler than LRU: an Efficient Turn-Key Eviction Algorithm for Web
Caches", NSDI 2024. New keys join at one end; a hit sets the key's bit and moves nothing. The hand goes from the
oldest key to the newest and around again: a bit that is set is cleared and the key stays; the first key without
one is the victim, and the hand stays there.

On leaves: the queue holds the leaves, and a chain of keys as one: its last key. When that is evicted, its parent
takes the place, just passed by the hand, and is judged in the next round. So a round takes one block from each
chain that nobody used, where a place before the hand would take the whole chain at once. A key in use when the hand
comes by is let go, and joins anew when it is released.

Parameters: none. O(1) amortised: the hand passes a key at the cost of the hit that set its bit, or of the release
that put it there.
"""

from collections.abc import Iterator
from typing import ClassVar

from engine_patches.orders.structures.ring import ByArrival, Linked, Ring


class SIEVE(ByArrival):
    """`node.mark` is the bit; -1: a key not accessed yet."""

    name: ClassVar[str] = "sieve"
    randomized: ClassVar[bool] = False

    def __init__(self, num_blocks: int, seed: int | None = None) -> None:  # noqa: ARG002  (no chance in this order)
        super().__init__(num_blocks)
        self._queue = Ring()
        self._hand = self._queue.end  # who is judged next; the end: the oldest

    def _touch(self, node: Linked) -> None:
        node.mark = 0 if node.mark < 0 else 1

    def _enqueue(self, node: Linked) -> None:
        lost_child = node.kids > 0  # a cached child, though no free one: the last one is being lost
        self._queue.add(node, self._hand if lost_child else None)

    def _remove(self, node: Linked) -> None:
        if node is self._hand:
            self._hand = node.right
        node.unlink()

    def _draw(self) -> Linked:
        while self._queue:
            node = self._hand
            self._hand = node.right
            if node is self._queue.end:
                continue
            if node.place < 0:
                node.unlink()
                node.mark = 0
            elif node.mark > 0:
                node.mark = 0
            else:
                return node
        raise IndexError("no free block")

    def _leaves(self, after: Linked | None = None) -> Iterator[Linked]:
        """From the hand on and around, those without the bit, then, in the next round, the others."""
        for mark in (0, 1):
            if after is not None and after.mark > mark:
                continue
            node: Linked = self._hand if after is None else after.right
            moved = after is not None
            while node is not self._hand or not moved:
                if node.place >= 0 and (node.mark > 0) == mark:
                    yield node
                node, moved = node.right, True
            after = None
