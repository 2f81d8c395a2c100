"""S3-FIFO: a small queue that most keys never get beyond, a main queue, and a ghost list.

Yang, Zhang, Qiu, Yue, Rashmi, "FIFO Queues are All You Need for Cache Eviction", SOSP 2023. A new key joins the small
queue. While that holds a tenth of the cache or more, its oldest key is judged: if it was used more than once since it
came, it moves to the main queue; otherwise it is the victim and becomes a ghost. A key that returns as a ghost joins
the main queue at once. There the oldest key is judged: if it was used, it joins at the back with one use less;
otherwise it is the victim. Uses are counted up to 3.

How it is carried over to leaves: the queues hold the leaves, but the tenth is measured in keys, inner ones included. A
key that moves to the main queue takes its ancestors along, because it is worth nothing without them. A parent that
becomes a leaf because its last child was evicted joins its queue at the back, so that a chain is evicted block by block
and not at once. A key that is in use when its turn comes leaves the queue, and joins at the back when it is released.

Parameters: the small queue's share (0.1) and the cap of the uses (3), as in the paper; the number of ghosts, which is
the main queue's share in blocks. O(1) amortised: a cached key moves to the main queue once, and each return to its back
is paid by a hit.
"""

from collections.abc import Iterator
from typing import ClassVar

from engine_patches.orders.structures.ghost_list import GhostList
from engine_patches.orders.structures.ring import FifoOrder, Ring, RingNode

SMALL_SHARE = 0.1
MOST_USES = 3
PROMOTED_FROM = 2  # uses


class S3FIFO(FifoOrder):
    """`node.mark` is 0 for a key of the small queue, 1 for one of the main queue, -1 for one not accessed yet.

    `node.count` is the number of uses. `small_size` is the number of keys of the small queue, inner ones included.
    """

    name: ClassVar[str] = "s3fifo"
    randomized: ClassVar[bool] = False

    def __init__(self, num_blocks: int, seed: int | None = None) -> None:  # noqa: ARG002  (no chance in this order)
        super().__init__(num_blocks)
        self._queues = (Ring(), Ring())  # small, main
        self._small_cap = max(1, int(num_blocks * SMALL_SHARE))
        self._ghosts = GhostList(num_blocks - self._small_cap)
        self.small_size = 0

    def _on_access(self, node: RingNode) -> None:
        if node.mark >= 0:
            node.count = min(node.count + 1, MOST_USES)
        elif self._ghosts.pop(node.key) >= 0:
            node.mark = 1
        else:
            node.mark = 0
            self.small_size += 1

    def _on_loss(self, node: RingNode, free: bool) -> None:
        self.small_size -= node.mark == 0
        super()._on_loss(node, free)

    def _enqueue(self, node: RingNode) -> None:
        self._queues[node.mark > 0].add(node)

    def _choose_victim(self) -> RingNode:
        while True:
            node = self._next_judged()
            if node.leaf_index < 0:
                node.unlink()
            elif self._is_spared(node):
                if node.mark == 0:
                    self._promote(node)
                else:
                    node.count -= 1
                    node.unlink()
                self._queues[1].add(node)
            else:
                if node.mark == 0:
                    self._ghosts.add(node.key, 0)
                return node

    def _next_judged(self) -> RingNode:
        """The key to judge next: the oldest of the small queue while that has its share, else of the main queue."""
        small, main = self._queues
        if small and (self.small_size >= self._small_cap or not main):
            queue = small
        elif main:
            queue = main
        else:
            raise IndexError("no free block")
        oldest: RingNode = queue.end.right
        return oldest

    def _is_spared(self, node: RingNode) -> bool:
        return node.count >= (1 if node.mark > 0 else PROMOTED_FROM)

    def _promote(self, node: RingNode | None) -> None:
        """Move the key and its ancestors from the small queue to the main one; the caller inserts the key there."""
        while node is not None and node.mark == 0:
            node.mark = 1
            node.count = 0
            self.small_size -= 1
            if node.left is not None:
                node.unlink()
            node = node.parent

    def _walk_leaves(self, after: RingNode | None = None) -> Iterator[RingNode]:
        """The leaves in the order of the small queue, then of the main one; first those that would be victims now."""
        passes = [(spared, queue) for spared in (False, True) for queue in (0, 1)]
        if after is not None:
            passes = passes[passes.index((self._is_spared(after), int(after.mark > 0))) :]
        for spared, queue in passes:
            for node in self._queues[queue].walk(after):
                if node.leaf_index >= 0 and self._is_spared(node) == spared:
                    yield node
            after = None
