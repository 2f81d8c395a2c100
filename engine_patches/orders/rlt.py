"""RLT, randomized leaf eviction (arXiv 2601.18999): random marking on the forest of cached prefixes.

Time is cut into phases. A key is marked in a phase if in that phase a request hits it or caches it, or the last request
that uses it gives it back. The victim is drawn uniformly from the unmarked leaves among the free blocks; when there is
none, a new phase begins, in which no key is marked at first. Against a fixed sequence of requests the paper's bound is
O(log n) times the misses of the clairvoyant optimum, which no deterministic order reaches. Expendable blocks go before
any leaf (`LeafOrder`).

Every operation is O(1), the change of phase included:
- a mark is the number of the phase that set it, so counting the phase up unmarks every key;
- the free leaves are in two arrays, unmarked and marked. A new phase begins when the first is empty, so it only swaps
  the two. When a leaf is removed from an array, the array's last entry moves into the gap.

If keys in use count as marked, the marked keys are closed under parents wherever requests hold whole prefixes: a key is
marked while its parent is in use, and the parent is marked before it becomes free or at that moment.
"""

import random
from collections.abc import Iterator
from itertools import islice
from typing import ClassVar, Generic

from engine_patches.orders.structures.leaf_order import LeafOrder
from engine_patches.orders.structures.node import BlockNode
from engine_patches.orders.structures.prefix_tree import N, PrefixTree


class MarkingTree(PrefixTree[N], Generic[N]):
    """A tree whose leaves are chosen by random marking. `phases`: phase changes so far; `marked`: keys marked now."""

    phases = marked = 0

    def __init__(self, seed: int | None, *size: int) -> None:
        super().__init__(*size)
        self._random = random.Random(seed).random
        self._unmarked: list[N] = []
        self._marked: list[N] = []

    def mark(self, node: N) -> None:
        """Mark the key, which is in use."""
        if node.mark != self.phases:
            node.mark = self.phases
            self.marked += 1

    def unmark(self, node: N) -> None:
        """Remove the key's mark, if it has one. The key is in use or was just chosen as the victim."""
        if node.mark == self.phases:
            node.mark = -1
            self.marked -= 1

    def _add_leaf(self, node: N) -> None:
        # The mark of a free leaf never changes, so it also says which array the leaf is in.
        leaves = self._marked if node.mark == self.phases else self._unmarked
        node.leaf_index = len(leaves)
        leaves.append(node)

    def _remove_leaf(self, node: N) -> None:
        leaves = self._marked if node.mark == self.phases else self._unmarked
        last = leaves.pop()
        if last is not node:
            leaves[node.leaf_index] = last
            last.leaf_index = node.leaf_index
        node.leaf_index = -1

    def _choose_victim(self) -> N:
        if not self._unmarked:
            if not self._marked:
                raise IndexError("no free block")
            self.phases += 1
            self.marked = 0
            self._unmarked, self._marked = self._marked, self._unmarked
        return self._unmarked[int(self._random() * len(self._unmarked))]

    def _walk_leaves(self, after: N | None = None) -> Iterator[N]:
        """The unmarked leaves, then those that the next phase unmarks, in array order, which is as likely as any."""
        arrays = [self._unmarked, self._marked]
        if after is not None and after.mark == self.phases:
            arrays = [self._marked]
        start = 0 if after is None else after.leaf_index + 1
        for leaves in arrays:
            yield from islice(leaves, start, None)
            start = 0


class RLT(MarkingTree[BlockNode], LeafOrder[BlockNode]):
    """Random marking over the pool's blocks. `seed` fixes the random choices."""

    name: ClassVar[str] = "rlt"
    randomized: ClassVar[bool] = True

    def __init__(self, num_blocks: int, seed: int | None = None) -> None:
        super().__init__(seed, num_blocks)

    def _on_access(self, node: BlockNode) -> None:
        self.mark(node)

    def _on_release(self, node: BlockNode, last: int) -> None:
        if last >= 0:
            self.mark(node)
        self._free(node)

    def _on_loss(self, node: BlockNode, free: bool) -> None:  # noqa: ARG002
        self.unmark(node)
