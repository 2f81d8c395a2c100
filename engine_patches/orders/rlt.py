"""RLT, randomized leaf eviction (arXiv 2601.18999): random marking on the forest of cached prefixes.

Time is cut into phases. A key is marked in the phase in which a request hits or caches it, or the last one that
uses it gives it back. The victim is drawn uniformly from the unmarked leaves among the free blocks; when there is
none, a new phase begins and no key is marked. Against a fixed sequence of requests the paper's bound is O(log n)
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
from typing import ClassVar, Generic

from engine_patches.orders.structures.forest import Forest
from engine_patches.orders.structures.node import Holder
from engine_patches.orders.structures.tree import N, Tree


class Marking(Tree[N], Generic[N]):
    """The choice among leaves. `phases`: phase changes so far; `marked`: keys marked in this phase."""

    phases = marked = 0

    def __init__(self, seed: int | None, *size: int) -> None:
        super().__init__(*size)
        self._lot = random.Random(seed).random
        self._unmarked: list[N] = []
        self._marked: list[N] = []

    def mark(self, node: N) -> None:
        """The key, in use, is marked."""
        if node.mark != self.phases:
            node.mark = self.phases
            self.marked += 1

    def unmark(self, node: N) -> None:
        """The key, in use or drawn, is unmarked."""
        if node.mark == self.phases:
            node.mark = -1
            self.marked -= 1

    def _join_leaves(self, node: N) -> None:
        # Where a free leaf stands: its own mark never changes while it is among the leaves.
        leaves = self._marked if node.mark == self.phases else self._unmarked
        node.place = len(leaves)
        leaves.append(node)

    def _leave_leaves(self, node: N) -> None:
        leaves = self._marked if node.mark == self.phases else self._unmarked
        last = leaves.pop()
        if last is not node:
            leaves[node.place] = last
            last.place = node.place
        node.place = -1

    def _draw(self) -> N:
        if not self._unmarked:
            if not self._marked:
                raise IndexError("no free block")
            self.phases += 1
            self.marked = 0
            self._unmarked, self._marked = self._marked, self._unmarked
        return self._unmarked[int(self._lot() * len(self._unmarked))]

    def _leaves(self, after: N | None = None) -> Iterator[N]:
        """Array order, as likely as any other: the unmarked ones, then those that the next phase unmarks."""
        arrays = [self._unmarked, self._marked]
        if after is not None and after.mark == self.phases:
            arrays = [self._marked]
        start = 0 if after is None else after.place + 1
        for leaves in arrays:
            yield from islice(leaves, start, None)
            start = 0


class RLT(Marking[Holder], Forest[Holder]):
    """`seed` fixes the lots."""

    name: ClassVar[str] = "rlt"
    randomized: ClassVar[bool] = True

    def __init__(self, num_blocks: int, seed: int | None = None) -> None:
        super().__init__(seed, num_blocks)

    def _touch(self, node: Holder) -> None:
        self.mark(node)

    def _give_back(self, node: Holder, last: int) -> None:
        if last >= 0:
            self.mark(node)
        self._free(node)

    def _forget(self, node: Holder, free: bool) -> None:  # noqa: ARG002
        self.unmark(node)
