"""ARC: two LRU lists, and two lists of ghosts that say which of the two deserves more room.

Megiddo, Modha, "ARC: A Self-Tuning, Low Overhead Replacement Cache", FAST 2003. T1 holds keys accessed once since
they came, T2 those accessed again. The victim is the oldest of T1 while T1 has more than p keys, else the oldest of
T2; it becomes a ghost of its list, B1 or B2. A key that returns as a ghost of B1 says that T1 was too short:
p += max(1, |B2| / |B1|); of B2, too long: p -= max(1, |B1| / |B2|), with 0 <= p <= n. Either goes to T2.

On leaves: |T1| counts keys, inner ones and ones in use too; the victim is the oldest leaf of its list, and where a
list has none, of the other. Within a list that is plain LRU (`ByRelease`): a key becomes recent when a request gives it
back. The host takes a block before it names the key, so a returning ghost moves p for the evictions after it, not
for its own.

Parameters: ghosts, n in each list. (The paper bounds |T1| + |B1| by n and all four lists by 2n. Then nothing is
remembered of keys that pass through while T1 fills the cache; a B1 of full length did as well or better on seven of
eight replays of block traces.) O(1) amortised.
"""

from collections.abc import Iterator
from typing import ClassVar

from engine_patches.orders.structures.ghosts import Ghosts
from engine_patches.orders.structures.ring import ByRelease, Linked, Ring


class ARC(ByRelease):
    """`node.mark`: 0 in T1, 1 in T2, -1 unknown (counted in neither)."""

    name: ClassVar[str] = "arc"
    randomized: ClassVar[bool] = False

    def __init__(self, num_blocks: int, seed: int | None = None) -> None:  # noqa: ARG002  (no chance in this order)
        super().__init__(num_blocks)
        self._num_blocks = num_blocks
        self._lists = (Ring(), Ring())
        self.once = 0  # |T1|
        self.target = 0.0  # p
        self._ghosts = (Ghosts(num_blocks), Ghosts(num_blocks))

    def _touch(self, node: Linked) -> None:
        if node.mark == 0:
            node.mark = 1
            self.once -= 1
        elif node.mark < 0:
            node.mark = int(self._was_ghost(node))
            self.once += node.mark == 0

    def _was_ghost(self, node: Linked) -> bool:
        """Moves p if the key returns."""
        b1, b2 = self._ghosts
        if b1.take(node.key) >= 0:
            self.target = min(self._num_blocks, self.target + max(1, len(b2) / (len(b1) + 1)))
        elif b2.take(node.key) >= 0:
            self.target = max(0, self.target - max(1, len(b1) / (len(b2) + 1)))
        else:
            return False
        return True

    def _forget(self, node: Linked, free: bool) -> None:
        self.once -= node.mark == 0
        super()._forget(node, free)

    def _ring(self, node: Linked) -> Ring:
        return self._lists[node.mark > 0]

    def _draw(self) -> Linked:
        for number in self._preference():
            node = self._oldest_leaf(self._lists[number])
            if node is not None:
                if node.key is not None:
                    self._ghosts[number].add(node.key, 0)
                return node
        raise IndexError("no free block")

    def _preference(self) -> tuple[int, int]:
        return (0, 1) if self.once > self.target else (1, 0)

    def _leaves(self, after: Linked | None = None) -> Iterator[Linked]:
        """The list that the next victim comes from, then the other."""
        for number in self._preference():
            if after is not None and number != (after.mark > 0):
                continue
            yield from (node for node in self._lists[number].walk(after) if node.place >= 0)
            after = None
