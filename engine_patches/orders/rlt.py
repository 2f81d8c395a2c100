"""RLT, randomized leaf eviction (arXiv 2601.18999): random marking on the forest of cached prefixes.

Time is cut into phases. A key is marked in the phase in which a block of it is hit, cached or released by a
request. The victim is drawn uniformly from the unmarked leaves among the free blocks; when there is none, a
new phase begins and no key is marked. Against a fixed sequence of requests the paper's bound is O(log n)
times the misses of the clairvoyant optimum, which no deterministic order reaches. Worthless blocks go first
(`Forest`).

Every operation is O(1), the phase change included:
- a mark is the number of the phase that set it, so counting the phase up unmarks every key;
- the free leaves stand in two arrays, unmarked and marked; a new phase begins when the first is empty, so it
  swaps the two. Leaving an array moves its last entry into the gap.

Marked keys, with keys in use counted as marked, are closed under parents wherever requests hold whole
prefixes: a key is marked while its parent is in use, and its parent is marked before or when it becomes
free.
"""

import random
from collections.abc import Iterator
from itertools import islice
from typing import ClassVar

from engine_patches.orders.forest import Forest
from engine_patches.orders.node import Node


class RLT(Forest):
    """`seed` fixes the lots. `phases`: phase changes so far; `marked`: keys marked in this phase."""

    name: ClassVar[str] = "rlt"

    def __init__(self, num_blocks: int, seed: int | None = None) -> None:
        super().__init__(num_blocks)
        self._random = random.Random(seed).random
        self._unmarked: list[Node] = []
        self._marked: list[Node] = []

    def _touch(self, node: Node) -> None:
        if node.mark != self.phases:
            node.mark = self.phases
            self.marked += 1

    def _forget(self, node: Node) -> None:
        if node.mark == self.phases:
            node.mark = -1
            self.marked -= 1

    def _join_leaves(self, node: Node) -> None:
        leaves = self._array(node)
        node.place = len(leaves)
        leaves.append(node)

    def _leave_leaves(self, node: Node) -> None:
        leaves = self._array(node)
        last = leaves.pop()
        if last is not node:
            leaves[node.place] = last
            last.place = node.place
        node.place = -1

    def _array(self, node: Node) -> list[Node]:
        """Where a free leaf stands: a key's own mark never changes while it is among the leaves."""
        return self._marked if node.mark == self.phases else self._unmarked

    def _draw(self) -> Node:
        if not self._unmarked:
            if not self._marked:
                raise IndexError("no free block")
            self.phases += 1
            self.marked = 0
            self._unmarked, self._marked = self._marked, self._unmarked
        return self._unmarked[int(self._random() * len(self._unmarked))]

    def _leaves(self, after: Node | None = None) -> Iterator[Node]:
        """Array order, as likely as any other: the unmarked ones, then those that the next phase unmarks."""
        arrays = [self._unmarked, self._marked]
        if after is not None and self._array(after) is self._marked:
            arrays = [self._marked]
        start = 0 if after is None else after.place + 1
        for leaves in arrays:
            yield from islice(leaves, start, None)
            start = 0
