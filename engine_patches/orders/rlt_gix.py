"""RLT-GIX: the learned order by Gittins index (`gix`), under a guard that keeps the worst case of randomized leaf
eviction (`rlt`).

A shadow cache (`shadow_cache`) replays what an engine that evicts by RLT would hold. At every block miss,

    debt = max(-B, debt + misses here - (1 + eps) misses of the shadow),         B = n/2, eps = 0.05.

When the debt rises above B, the guard takes over: the victims are random leaves that the shadow does not hold, until
debt <= 0. Then, on any interval of requests and whatever GIX does,

    C <= (1 + eps) C_RLT + 2 B + n + L  <=  (1 + eps) C_RLT + 3 n,

where C and C_RLT are the block misses of this order and of its shadow, and L is the number of blocks of the longest
request. RLT's O(log n) in expectation against a fixed sequence (arXiv 2601.18999) carries over with 1 + eps and 3n
misses, because the shadow draws random numbers of its own. To make one algorithm of two by following the cheaper one is
the MIN operator of Fiat, Rabani, Ravid, "Competitive k-server algorithms" (1990; 1994). Antoniadis et al., "Online
metric algorithms with untrusted predictions", and Wei, "Better and simpler learning-augmented online caching" (both
2020), guard advice with it. Here the clamp at -B makes the bound hold on every interval: credit that was earned in good
hours cannot be spent later.

Why it holds, and what it needs of the engine (A is the set of keys here, S that of the shadow):
1. Every key in use is in S: `_on_use` and `_on_access` bring it there before anything is evicted for it, and the shadow
   never evicts what is in use. So a request's own blocks are never evicted while it runs, neither here nor there.
2. While the guard decides, each miss inserts a key of S \\ A and evicts one of A \\ S, so |S \\ A| falls by one a
   miss and rises only by misses of the shadow: C <= |S \\ A| + C_RLT <= n + C_RLT.
3. A \\ S then has a free leaf of A. Both have the same room (what is in use without a key counts in both), and A is
   full when it must evict; so if A \\ S were empty, the shadow would have to evict as well before it could hold the
   keys that are to come, and it does so at once. And S is closed under parents, so all keys below a key outside S are
   outside S too; one of them is a leaf, which by 1 is not in use.
4. While GIX decides, the debt stays below B + L; afterwards it grows by n at most (2), and the clamp only raises it.

The engine evicts for a whole request before it tells the request's keys, and it tells them all at once. So the shadow
makes no room for blocks popped since the last hit or release until their keys come (`_reserved` is the room that was
taken without a key before that). Thus it sees each key before it evicts for it, as RLT does. In groups of sliding
windows or states S is not closed under parents; the shadow is then made to evict more often than 3 says, and the bound
holds only as far as the shadow's misses stay those of RLT. A key that the engine voids (`uncache`) is dropped from
both. A key that is pinned without a request and is not in the shadow is brought into it, as a miss of the shadow.

Cost: O(1) for each verb, as much as `gix` and `rlt` together.
"""

from collections.abc import Sequence
from typing import ClassVar

from engine_patches.orders.gix import GittinsNode, GittinsOrder
from engine_patches.orders.structures.shadow_cache import ShadowCache, ShadowNode

EPSILON = 0.05
BUDGET_IN_CAPACITY = 0.5


class GuardedNode(GittinsNode):
    """A key of the guarded order. `shadow_node` is the shadow's node of the same key, None if the shadow lacks it.

    `outside_index` is the key's index among the leaves that the shadow does not hold, -1 if it is none of them.
    """

    __slots__ = ("outside_index", "shadow_node")

    def __init__(self) -> None:
        super().__init__()
        self.shadow_node: ShadowNode | None = None
        self.outside_index = -1


class RLTGIX(GittinsOrder[GuardedNode]):
    """GIX under the guard. `seed` fixes all random choices. `debt` is in block misses; `phases` and `marked` are the
    shadow's."""

    name: ClassVar[str] = "rlt_gix"
    node_type = GuardedNode

    def __init__(self, num_blocks: int, seed: int | None = None) -> None:
        super().__init__(num_blocks, seed)
        # A seed of its own: the choices of GIX must tell nothing about those of the shadow.
        self._shadow = ShadowCache(None if seed is None else ~seed)
        self._outside: list[GuardedNode] = []  # leaves that the shadow does not hold
        self._size = num_blocks  # n
        self._reserved = 0
        self._budget = BUDGET_IN_CAPACITY * num_blocks  # B
        self.debt = 0.0

    @property
    def phases(self) -> int:  # type: ignore[override]  # the shadow's, for reading only
        return self._shadow.phases

    @property
    def marked(self) -> int:  # type: ignore[override]
        return self._shadow.marked

    @property
    def shadow_misses(self) -> int:
        return self._shadow.misses

    # The shadow sees the same requests, and sees them first. (Plain calls of the base class instead of super(): this is
    # the inner loop.)

    def _on_access(self, node: GuardedNode) -> None:
        shadow = self._shadow
        shadow_node = node.shadow_node or self._bring_into_shadow(node, 1)
        if shadow_node.mark != shadow.phases:
            shadow.mark(shadow_node)
        GittinsOrder._on_access(self, node)

    def _bring_into_shadow(self, node: GuardedNode, miss: int) -> ShadowNode:
        """The shadow takes the key into use, held or not. `miss` is 1 if the key was missing here too, else 0."""
        shadow, parent = self._shadow, node.parent
        misses = shadow.misses
        shadow_node = node.shadow_node = shadow.acquire(node.key, None if parent is None else parent.shadow_node)
        shadow_node.guarded_node = node
        self._add_debt(miss - (1 + EPSILON) * (shadow.misses - misses))
        self._make_room_in_shadow()
        return shadow_node

    def _make_room_in_shadow(self) -> None:
        keyless = self._size - self.free - self._shadow.num_in_use
        room = self._size - (keyless if keyless < self._reserved else self._reserved)
        while self._shadow.num_keys > room and self._evict_from_shadow():
            pass

    def _on_use(self, node: GuardedNode) -> None:
        GittinsOrder._on_use(self, node)
        shadow = self._shadow
        if node.shadow_node is not None:
            shadow.use(node.shadow_node)
        else:
            self._remove_outside(node)
            self._bring_into_shadow(node, 0)
        self._reserved = self._size - self.free - shadow.num_in_use

    def _on_release(self, node: GuardedNode, last: int) -> None:
        GittinsOrder._on_release(self, node, last)
        if node.shadow_node is not None:
            self._shadow.release(node.shadow_node, last >= 0)

    def release(self, blocks: Sequence[int]) -> None:
        GittinsOrder.release(self, blocks)
        self._reserved = self._size - self.free - self._shadow.num_in_use
        self._make_room_in_shadow()

    def _on_loss(self, node: GuardedNode, free: bool) -> None:
        GittinsOrder._on_loss(self, node, free)
        shadow_node, parent = node.shadow_node, node.parent
        if shadow_node is not None:
            node.shadow_node = shadow_node.guarded_node = None
        else:
            self._remove_outside(node)
        if parent is not None and parent.leaf_index >= 0 and parent.shadow_node is None and parent.outside_index < 0:
            self._add_outside(parent)

    def uncache(self, block: int) -> None:
        node = self._node_of[block]
        shadow_node = None if node is None else node.shadow_node
        GittinsOrder.uncache(self, block)
        if shadow_node is not None and shadow_node.guarded_node is None:
            self._shadow.drop(shadow_node)

    def clear(self) -> None:
        super().clear()
        self._shadow.clear()

    def _evict_from_shadow(self) -> bool:
        """Let the shadow evict a key. False if it has nothing to evict, which cannot happen if keys name prefixes."""
        shadow_node = self._shadow.evict()
        if shadow_node is None:
            return False
        node = shadow_node.guarded_node
        if node is not None:
            node.shadow_node = shadow_node.guarded_node = None
            if node.leaf_index >= 0:
                self._add_outside(node)
        return True

    # The guard.

    def _add_debt(self, misses: float) -> None:
        """Change the debt by `misses`, and decide whether the guard is in charge from now on."""
        debt = self.debt + misses
        self.debt = debt if debt > -self._budget else -self._budget
        if self.fallback:
            self.fallback = debt > 0
        elif debt > self._budget:
            self.fallback = True
            self.fallbacks += 1

    def _choose_victim(self) -> GuardedNode:
        if not self.fallback or self._first_leaves() is None:
            return GittinsOrder._choose_victim(self)
        while self._outside or self._evict_from_shadow():
            if self._outside:
                node = self._outside[int(self._random() * len(self._outside))]
                if node.leaf_index >= 0:
                    return node
                # A child of it became free since, which happens only where requests do not hold whole prefixes.
                self._remove_outside(node)
        return GittinsOrder._choose_victim(self)

    def _add_outside(self, node: GuardedNode) -> None:
        node.outside_index = len(self._outside)
        self._outside.append(node)

    def _remove_outside(self, node: GuardedNode) -> None:
        if node.outside_index >= 0:
            last = self._outside.pop()
            if last is not node:
                self._outside[node.outside_index] = last
                last.outside_index = node.outside_index
            node.outside_index = -1
