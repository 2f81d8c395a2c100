"""RLT-GIX: the learned order of `gix` under a guard that keeps the worst case of `rlt`.

A shadow (`shadow`) replays what an engine that evicts by RLT would hold. Of every block miss,

    debt = max(-B, debt + misses here - (1 + eps) misses of the shadow),         B = n/2, eps = 0.05.

Above B the guard takes over: the victims are random leaves that the shadow does not hold, until debt <= 0. Then, on any
interval of requests and whatever GIX does,

    C <= (1 + eps) C_RLT + 2 B + n + L  <=  (1 + eps) C_RLT + 3 n,

C, C_RLT: block misses of this order and of its shadow, L: the blocks of the longest request. RLT's O(log n) in
expectation against a fixed sequence (arXiv 2601.18999) carries over with 1 + eps and 3n misses: the shadow's lots are
its own. To make one algorithm of two by following the cheaper is the MIN operator of Fiat, Rabani, Ravid, "Competitive
k-server algorithms" (1990; 1994); to guard advice with it, Antoniadis et al., "Online metric algorithms with untrusted
predictions", and Wei, "Better and simpler learning-augmented online caching" (both 2020). Here the clamp at -B makes
the bound hold on every interval: credit of good hours cannot be burnt later.

Why, and what it needs of the engine (A: keys here, S: keys of the shadow):
1. Every key in use is in S: `_use` and `_touch` bring it there before anything is evicted for it, and what is in use
   there is never evicted. A request's own blocks thus never go while it runs, here or there.
2. While the guard decides, each miss inserts a key of S \\ A and evicts one of A \\ S, so |S \\ A| falls by one a miss
   and rises only by misses of the shadow: C <= |S \\ A| + C_RLT <= n + C_RLT.
3. A \\ S then has a free leaf of A. Both have the same room (what is in use without a key counts in both), and A is
   full when it must evict; so if A \\ S were empty, the shadow would have to evict as well before it could hold the
   keys that are to come: it does so at once. And S is closed under parents, so what is below a block outside S is
   outside S, a leaf among it, which by 1 is not in use.
4. While GIX decides, debt stays below B + L, then grows by n at most (2), and the clamp only raises it.

The engine evicts for a whole request before it tells its keys, and tells them in one go. So the shadow makes no room
for blocks popped since the last hit or release until their keys come (`_reserved` is the room taken without a key
before that): it sees each key before it evicts for it, as RLT does. In groups of sliding windows or states S is not
closed under parents; the shadow is then made to evict more often than 3 says, and the bound holds only as far as its
misses stay those of RLT. Keys that the engine voids (`uncache`) go in both; what somebody pins without a request is
brought back to the shadow as a miss of it.

Cost: O(1) a verb, as `gix` and `rlt` together.
"""

from collections.abc import Sequence
from typing import ClassVar

from engine_patches.orders.gix import Gittins, Leaf
from engine_patches.orders.structures.shadow import Shadow, Twin

EPSILON = 0.05
BUDGET_IN_CAPACITY = 0.5


class Guarded(Leaf):
    """`twin`: the shadow's node of the key, None if it does not hold it. `out`: place among the leaves it does not
    hold."""

    __slots__ = ("out", "twin")

    def __init__(self) -> None:
        super().__init__()
        self.twin: Twin | None = None
        self.out = -1


class RLTGIX(Gittins[Guarded]):
    """`seed` fixes the lots. `debt`: block misses, as above; `phases`, `marked`: the shadow's."""

    name: ClassVar[str] = "rlt_gix"
    node_type = Guarded

    def __init__(self, num_blocks: int, seed: int | None = None) -> None:
        super().__init__(num_blocks, seed)
        # A lot of its own: the choices of GIX must tell nothing about those of the shadow.
        self._shadow = Shadow(None if seed is None else ~seed)
        self._out: list[Guarded] = []
        self._size = num_blocks
        self._reserved = 0
        self._budget = BUDGET_IN_CAPACITY * num_blocks
        self.debt = 0.0

    @property
    def phases(self) -> int:  # type: ignore[override]  # the shadow's, read only
        return self._shadow.phases

    @property
    def marked(self) -> int:  # type: ignore[override]
        return self._shadow.marked

    @property
    def shadow_misses(self) -> int:
        return self._shadow.misses

    # The same requests, there first. (Plain calls of the class above, not super(): this is the inner loop.)

    def _touch(self, node: Guarded) -> None:
        shadow = self._shadow
        twin = node.twin or self._mirror(node, 1)
        if twin.mark != shadow.phases:
            shadow.mark(twin)
        Gittins._touch(self, node)

    def _mirror(self, node: Guarded, miss: int) -> Twin:
        """The shadow needs a key that it may lack. `miss`: 1 if it was missing here, too."""
        shadow, parent = self._shadow, node.parent
        misses = shadow.misses
        twin = node.twin = shadow.need(node.key, None if parent is None else parent.twin)
        twin.own = node
        self._owe(miss - (1 + EPSILON) * (shadow.misses - misses))
        self._make_room()
        return twin

    def _make_room(self) -> None:
        keyless = self._size - self.free - self._shadow.in_use
        room = self._size - (keyless if keyless < self._reserved else self._reserved)
        while self._shadow.held > room and self._evict_there():
            pass

    def _use(self, node: Guarded) -> None:
        Gittins._use(self, node)
        shadow = self._shadow
        if node.twin is not None:
            shadow.use(node.twin)
        else:
            self._leave_out(node)
            self._mirror(node, 0)
        self._reserved = self._size - self.free - shadow.in_use

    def _give_back(self, node: Guarded, last: int) -> None:
        Gittins._give_back(self, node, last)
        if node.twin is not None:
            self._shadow.give_back(node.twin, last >= 0)

    def release(self, blocks: Sequence[int]) -> None:
        Gittins.release(self, blocks)
        self._reserved = self._size - self.free - self._shadow.in_use
        self._make_room()

    def _forget(self, node: Guarded, free: bool) -> None:
        Gittins._forget(self, node, free)
        twin, parent = node.twin, node.parent
        if twin is not None:
            node.twin = twin.own = None
        else:
            self._leave_out(node)
        if parent is not None and parent.place >= 0 and parent.twin is None and parent.out < 0:
            self._join_out(parent)

    def uncache(self, block: int) -> None:
        node = self._node[block]
        twin = None if node is None else node.twin
        Gittins.uncache(self, block)
        if twin is not None and twin.own is None:
            self._shadow.drop(twin)

    def clear(self) -> None:
        super().clear()
        self._shadow.clear()

    def _evict_there(self) -> bool:
        """False if the shadow has nothing to evict, which keys that name prefixes cannot bring about."""
        twin = self._shadow.evict()
        if twin is None:
            return False
        node = twin.own
        if node is not None:
            node.twin = twin.own = None
            if node.place >= 0:
                self._join_out(node)
        return True

    # The guard.

    def _owe(self, misses: float) -> None:
        debt = self.debt + misses
        self.debt = debt if debt > -self._budget else -self._budget
        if self.fallback:
            self.fallback = debt > 0
        elif debt > self._budget:
            self.fallback = True
            self.fallbacks += 1

    def _draw(self) -> Guarded:
        if not self.fallback or not self._filled:
            return Gittins._draw(self)
        while self._out or self._evict_there():
            if self._out:
                node = self._out[int(self._lot() * len(self._out))]
                if node.place >= 0:
                    return node
                self._leave_out(node)  # a child of it became free first: only where requests do not hold whole prefixes
        return Gittins._draw(self)

    def _join_out(self, node: Guarded) -> None:
        node.out = len(self._out)
        self._out.append(node)

    def _leave_out(self, node: Guarded) -> None:
        if node.out >= 0:
            last = self._out.pop()
            if last is not node:
                self._out[node.out] = last
                last.out = node.out
            node.out = -1
