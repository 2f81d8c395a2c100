"""ARC: two LRU lists, and two lists of ghosts that say which of the two deserves more room.

Megiddo, Modha, "ARC: A Self-Tuning, Low Overhead Replacement Cache", FAST 2003. T1 holds keys accessed once since
they came, T2 those accessed again. The victim is the oldest of T1 while T1 has more than p keys, else the oldest of
T2; it becomes a ghost of its list, B1 or B2. A key that returns as a ghost of B1 says that T1 was too short:
p += max(1, |B2| / |B1|). A ghost of B2 says that T1 was too long: p -= max(1, |B1| / |B2|), with 0 <= p <= n. Both go
to T2.

How it is carried over to leaves: |T1| counts keys, also inner ones and ones in use. The victim is the oldest leaf of
its list, or of the other list if that has none. Each list is a plain LRU list (`RecencyOrder`): a key becomes recent
when a request gives it back. The host takes a block before it names the key, so a returning ghost moves p for the
evictions after its own.

Parameters: the number of ghosts, n in each list. (The paper bounds |T1| + |B1| by n and all four lists by 2n. Then
nothing is remembered of keys that pass through while T1 fills the cache; a B1 of full length did as well or better on
seven of eight replays of block traces.) O(1) amortised.
"""

from collections.abc import Iterator
from typing import ClassVar

from engine_patches.orders.structures.ghost_list import GhostList
from engine_patches.orders.structures.ring import RecencyOrder, Ring, RingNode


class ARC(RecencyOrder):
    """`node.mark` is 0 for a key of T1, 1 for one of T2, and -1 for one that is not accessed yet and counts in neither.

    `t1_size` is |T1| in keys, and `t1_target` is p, the size that T1 should have.
    """

    name: ClassVar[str] = "arc"
    randomized: ClassVar[bool] = False

    def __init__(self, num_blocks: int, seed: int | None = None) -> None:  # noqa: ARG002  (no chance in this order)
        super().__init__(num_blocks)
        self._num_blocks = num_blocks
        self._lists = (Ring(), Ring())  # T1, T2
        self.t1_size = 0
        self.t1_target = 0.0
        self._ghosts = (GhostList(num_blocks), GhostList(num_blocks))  # B1, B2

    def _on_access(self, node: RingNode) -> None:
        if node.mark == 0:
            node.mark = 1
            self.t1_size -= 1
        elif node.mark < 0:
            node.mark = int(self._adapt_target(node))
            self.t1_size += node.mark == 0

    def _adapt_target(self, node: RingNode) -> bool:
        """Move p if the key returns as a ghost, and say whether it does."""
        b1, b2 = self._ghosts
        if b1.pop(node.key) >= 0:
            self.t1_target = min(self._num_blocks, self.t1_target + max(1, len(b2) / (len(b1) + 1)))
        elif b2.pop(node.key) >= 0:
            self.t1_target = max(0, self.t1_target - max(1, len(b1) / (len(b2) + 1)))
        else:
            return False
        return True

    def _on_loss(self, node: RingNode, free: bool) -> None:
        self.t1_size -= node.mark == 0
        super()._on_loss(node, free)

    def _ring(self, node: RingNode) -> Ring:
        return self._lists[node.mark > 0]

    def _choose_victim(self) -> RingNode:
        for number in self._preference():
            node = self._oldest_leaf(self._lists[number])
            if node is not None:
                if node.key is not None:
                    self._ghosts[number].add(node.key, 0)
                return node
        raise IndexError("no free block")

    def _preference(self) -> tuple[int, int]:
        """The list that the next victim comes from, as an index of `_lists`, then the other list."""
        return (0, 1) if self.t1_size > self.t1_target else (1, 0)

    def _walk_leaves(self, after: RingNode | None = None) -> Iterator[RingNode]:
        """The leaves of the list that the next victim comes from, then those of the other."""
        for number in self._preference():
            if after is not None and number != (after.mark > 0):
                continue
            yield from (node for node in self._lists[number].walk(after) if node.leaf_index >= 0)
            after = None
