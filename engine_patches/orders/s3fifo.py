"""S3-FIFO: a small queue that most keys never get beyond, a main queue, and a list of ghosts.

Yang, Zhang, Qiu, Yue, Rashmi, "FIFO Queues are All You Need for Cache Eviction", SOSP 2023. A new key joins the
small queue. While that holds a tenth of the cache or more, its oldest key is judged: used more than once since
it came, it moves to the main queue; otherwise it is the victim and becomes a ghost. A key that returns as a ghost
joins the main queue at once. There the oldest key is judged: used, it joins at the back with one use less;
otherwise it is the victim. Uses are counted up to 3.

On leaves: the queues hold the leaves, the tenth is measured in keys, inner ones too. A key that moves to the main
queue takes its ancestors along: without them it is worth nothing. A parent that becomes a leaf since its last
child was evicted joins its queue at the back, so that a chain goes block by block and not at once. A key in use
when its turn comes is let go, and joins at the back when it is released.

Parameters: the small queue's share (.1) and the cap of the uses (3), as in the paper; ghosts: as many as keys in the
main queue's share. O(1) amortised: moving to the main queue happens once to a cached key, a return to its back is
paid by a hit.
"""

from collections.abc import Iterator
from typing import ClassVar

from engine_patches.orders.structures.ghosts import Ghosts
from engine_patches.orders.structures.ring import ByArrival, Linked, Ring

SMALL_SHARE = 0.1
MOST_USES = 3
PROMOTED_FROM = 2  # uses


class S3FIFO(ByArrival):
    """`node.mark`: 0 of the small queue, 1 of the main one, -1 unknown; `node.count`: uses."""

    name: ClassVar[str] = "s3fifo"
    randomized: ClassVar[bool] = False

    def __init__(self, num_blocks: int, seed: int | None = None) -> None:  # noqa: ARG002  (no chance in this order)
        super().__init__(num_blocks)
        self._queues = (Ring(), Ring())
        self._small_cap = max(1, int(num_blocks * SMALL_SHARE))
        self._ghosts = Ghosts(num_blocks - self._small_cap)
        self.small = 0  # keys of the small queue, the inner ones too

    def _touch(self, node: Linked) -> None:
        if node.mark >= 0:
            node.count = min(node.count + 1, MOST_USES)
        elif self._ghosts.take(node.key) >= 0:
            node.mark = 1
        else:
            node.mark = 0
            self.small += 1

    def _forget(self, node: Linked, free: bool) -> None:
        self.small -= node.mark == 0
        super()._forget(node, free)

    def _enqueue(self, node: Linked) -> None:
        self._queues[node.mark > 0].add(node)

    def _draw(self) -> Linked:
        while True:
            node = self._next()
            if node.place < 0:
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

    def _next(self) -> Linked:
        """Who is judged next: the oldest of the small queue if that has its share, else of the main one."""
        small, main = self._queues
        if small and (self.small >= self._small_cap or not main):
            queue = small
        elif main:
            queue = main
        else:
            raise IndexError("no free block")
        oldest: Linked = queue.end.right
        return oldest

    def _is_spared(self, node: Linked) -> bool:
        return node.count >= (1 if node.mark > 0 else PROMOTED_FROM)

    def _promote(self, node: Linked | None) -> None:
        while node is not None and node.mark == 0:
            node.mark = 1
            node.count = 0
            self.small -= 1
            if node.left is not None:
                node.unlink()
            node = node.parent

    def _leaves(self, after: Linked | None = None) -> Iterator[Linked]:
        """As they stand in the small queue and the main one; first those that would be victims now."""
        passes = [(spared, queue) for spared in (False, True) for queue in (0, 1)]
        if after is not None:
            passes = passes[passes.index((self._is_spared(after), int(after.mark > 0))) :]
        for spared, queue in passes:
            for node in self._queues[queue].walk(after):
                if node.place >= 0 and self._is_spared(node) == spared:
                    yield node
            after = None
