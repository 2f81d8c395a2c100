"""GIX, an order by Gittins index: evict the leaf whose reuse is worth least for the space that it takes.

What a leaf is worth is its Gittins index, which follows from hazards of reuse that are learned online (`hazard`).

A key's class is 16 return + 4 min(hits, 3) + 2 branch + back:
- return: when the session that used the key last is expected to ask again, in steps; 0: no session, or nothing known
  (`sessions`). All keys of one use share it, so news of a session count for its blocks at once, and move its leaves;
- hits: accesses since the key was first cached; evictions in between do not end the count while they are remembered;
- branch: 1 if the key belongs to a stretch that was born where the tree forked, below a key that had a child already.
  All keys that one request adds below the deepest key known before it are one stretch. Keys at a root are not born at a
  branch, nor are those that continue a leaf (the next turn of a conversation);
- back: 1 if the key lay in the back half of the request that used it last.
So shared prefixes, diverging tails and heads of new prompts are told apart, and what each is worth is learned.

Time is counted in accesses: D = max(256, n/8) accesses make an epoch, n being the number of blocks. Inside an engine,
where requests run side by side,
- an access is a hit of a cached block, or a block that gets its hash, whether prefilled or generated. A block computed
  twice is an access of the key that it gets;
- a key is at risk while no request uses it. A hit of a key at risk is an event at its age. A hit of a key in use only
  counts in `hits`. A pin without reuse (an offload that copies) is no event and does not make the key younger;
- class and epoch are taken when the last user gives the key back: then the request's length is known, generated blocks
  included. With several groups of layers the length counts in the blocks of the key's own group;
- a preempted request gives its blocks back and later hits those that are left: two uses, as by any other request.

Free leaves are in one bucket for each class and epoch of last use, so the victim is exact: a random leaf of the first
non-empty bucket by (level, older first). Leaves unused for HORIZON epochs keep their bucket; all such buckets of a
class are ranked as one, and the oldest of them goes first. Up to 4 n evicted keys are remembered as ghosts: their reuse
is an event, and it finds their class as it was.

Buckets stand in a heap by rank, and only those that are not empty are ranked. What a class is worth is computed once an
epoch when a leaf of it is ranked, that of a class with a session every fourth epoch.

Cost: O(1) for each verb, and O(log 9,360) for the rank of a bucket that was empty; at the end of an epoch the buckets
that are not empty are ranked anew, at most 9,360, whatever n is. GIX alone has no
bound against an adversary: `rlt_gix` is GIX under a guard.
"""

import random
from collections import OrderedDict
from collections.abc import Hashable, Iterator, Sequence
from heapq import heapify, heappop, heappush
from itertools import islice
from typing import ClassVar, Generic, TypeVar

from engine_patches.orders.structures.ghost_list import GhostList
from engine_patches.orders.structures.hazard import BIN_OF_AGE, BINS, HORIZON, HazardTable
from engine_patches.orders.structures.leaf_order import LeafOrder
from engine_patches.orders.structures.node import BlockNode
from engine_patches.orders.structures.sessions import RETURN_CLASSES, UNKNOWN, Session, SessionTable, Use, return_class

KINDS = 16  # what makes a class, but for the return class
CLASSES = KINDS * RETURN_CLASSES
MOST_HITS = 3
EPOCHS_IN_CAPACITY = 8
SHORTEST_EPOCH = 256  # accesses
GHOSTS_IN_CAPACITY = 4
SLOTS = HORIZON + 1  # buckets of a class: one for each recent epoch, and one for all leaves that are older
ANCIENT = HORIZON  # the slot of that last bucket
NUM_BUCKETS = CLASSES * SLOTS


NO_SESSION = Use(UNKNOWN * KINDS, 0, KINDS, None)
"""The use of all requests without a session."""


class GittinsNode(BlockNode):
    """A key with what GIX has learned of it."""

    __slots__ = ("age_at_use", "at_branch", "epoch", "had_child", "hits", "in_first_use", "kind", "session", "use")

    def __init__(self) -> None:
        super().__init__()
        self.hits = 0
        self.kind = 0  # the class, as the module defines it, is `use.first_class + kind`
        self.use = NO_SESSION
        self.session: Session | None = None  # the session of the request that was assigned to the key
        self.epoch = -1  # epoch of the last use; -1: not accessed yet
        self.age_at_use = -1  # the key's age when it was taken into use; -1 once that use is accounted for
        self.at_branch = False
        self.had_child = False
        self.in_first_use = True  # the key is new, and its first request still runs


L = TypeVar("L", bound=GittinsNode)


class GittinsOrder(LeafOrder[L], Generic[L]):
    """The rule of `gix`, which `rlt_gix` shares."""

    randomized: ClassVar[bool] = True

    def __init__(self, num_blocks: int, seed: int | None = None) -> None:
        super().__init__(num_blocks)
        self._random = random.Random(seed).random
        self._epoch_length = max(SHORTEST_EPOCH, num_blocks // EPOCHS_IN_CAPACITY)
        self._hazards = HazardTable(CLASSES, self._epoch_length, num_blocks, slow_from=KINDS)
        self._at_risk, self._events = self._hazards.at_risk, self._hazards.events
        self._ghosts = GhostList(GHOSTS_IN_CAPACITY * num_blocks)
        self._sessions = SessionTable()
        self._use = NO_SESSION  # of the blocks that are being given back
        self._epoch = 0
        self._accesses_left = self._epoch_length
        # Free leaves by class * SLOTS + epoch % HORIZON; those of slot ANCIENT are in `_ancient`, by class and epoch.
        self._buckets: list[list[L]] = [[] for _ in range(NUM_BUCKETS)]
        self._ancient: list[OrderedDict[int, list[L]]] = [OrderedDict() for _ in range(CLASSES)]
        # A heap of the ranks of all buckets that are not empty, and of some that have become empty. The bucket of a
        # rank is its remainder by the number of buckets.
        self._ranks: list[int] = []
        self._is_ranked = bytearray(NUM_BUCKETS)

    # Sessions.

    def assign(self, block: int, session: Hashable, arrival_s: float) -> None:
        node = self._node_of[block]
        if node is not None:
            node.session = self._sessions.arrive(session, arrival_s)

    def expect(self, session: Hashable, seconds: float | None) -> None:
        known = self._sessions.find(session)
        if known is None:
            return
        self.hints += 1
        told = return_class(seconds)
        if known.use is None:
            known.told = told
        else:
            self._move(known.use, KINDS * told)

    def _move(self, use: Use, first_class: int) -> None:
        """The keys of the use are of other classes from now on: those at risk, and the leaves among them."""
        assert use.leaves is not None
        if use.first_class == first_class:
            return
        leaves = list(use.leaves)
        for node in leaves:
            self._remove_leaf(node)
        if self._epoch - use.epoch < HORIZON:
            at_risk, slot = self._at_risk, use.epoch % HORIZON
            for kind, count in enumerate(use.counts):
                at_risk[(use.first_class + kind) * HORIZON + slot] -= count
                at_risk[(first_class + kind) * HORIZON + slot] += count
        use.first_class = first_class
        for node in leaves:
            self._add_leaf(node)

    def release(self, blocks: Sequence[int]) -> None:
        node = self._node_of[blocks[0]] if blocks else None
        session = None if node is None else node.session
        self._use = NO_SESSION
        if session is not None:
            expected = session.told or self._sessions.predict(session)
            session.told = UNKNOWN
            self._use = session.use = Use(KINDS * expected, self._epoch, KINDS, {})
        LeafOrder.release(self, blocks)

    # What is learned.

    def _on_access(self, node: L) -> None:
        age = node.age_at_use
        if age >= 0:
            node.age_at_use = -1
            if age < HORIZON:
                self._events[(node.use.first_class + node.kind) * BINS + BIN_OF_AGE[age]] += 1
        if node.epoch < 0:
            self._first_access(node)
        elif node.hits < MOST_HITS:
            node.hits += 1
        self._accesses_left -= 1
        if not self._accesses_left:
            self._end_epoch()

    def _first_access(self, node: L) -> None:
        """Initialise the node of a key that was not cached until this access, from its ghost if there is one."""
        node.epoch = self._epoch
        node.session = None
        parent: L | None = node.parent
        ghost = self._ghosts.pop(node.key)
        if ghost >= 0:
            node.in_first_use = False
            node.had_child, node.at_branch = bool(ghost & 1), bool(ghost & 2)
            node.hits = min(MOST_HITS, (ghost >> 2 & 3) + 1)
            reuse_class, epoch = ghost >> 4 & 255, ghost >> 12
            age = self._epoch - epoch
            if age < HORIZON:
                self._at_risk[reuse_class * HORIZON + epoch % HORIZON] -= 1
                self._events[reuse_class * BINS + BIN_OF_AGE[age]] += 1
        else:
            node.in_first_use = True
            node.had_child, node.hits = False, 0
            # Below a key of the same request, the key belongs to the stretch of that one.
            node.at_branch = parent is not None and (
                parent.at_branch if parent.in_first_use and not parent.had_child else parent.had_child
            )
        if parent is not None:
            parent.had_child = True

    def _on_release(self, node: L, last: int) -> None:
        if last >= 0:
            node.kind = 4 * node.hits + 2 * node.at_branch + (2 * (last - node.position) <= last)
            node.use = self._use
            node.epoch = self._epoch
            node.in_first_use = False
        node.age_at_use = -1
        use, kind, epoch = node.use, node.kind, node.epoch
        use.counts[kind] += 1
        if self._epoch - epoch < HORIZON:
            self._at_risk[(use.first_class + kind) * HORIZON + epoch % HORIZON] += 1
        self._free(node)

    def _on_use(self, node: L) -> None:
        self._take(node)
        self._leave_use(node)
        node.age_at_use = self._epoch - node.epoch

    def _leave_use(self, node: L) -> None:
        """The key, free so far, is at risk no longer."""
        use, kind, epoch = node.use, node.kind, node.epoch
        use.counts[kind] -= 1
        if self._epoch - epoch < HORIZON:
            self._at_risk[(use.first_class + kind) * HORIZON + epoch % HORIZON] -= 1

    def _on_loss(self, node: L, free: bool) -> None:
        if free and node.key is not None:  # evicted: it stays at risk as a ghost
            use, kind = node.use, node.kind
            use.counts[kind] -= 1
            state = node.epoch << 12 | (use.first_class + kind) << 4 | node.hits << 2 | node.at_branch << 1
            expired = self._ghosts.add(node.key, state | node.had_child)
            if expired >= 0:
                epoch = expired >> 12
                if self._epoch - epoch < HORIZON:
                    self._at_risk[(expired >> 4 & 255) * HORIZON + epoch % HORIZON] -= 1
        elif free:
            self._leave_use(node)
        node.epoch = -1
        node.use, node.session = NO_SESSION, None

    def _end_epoch(self) -> None:
        self._accesses_left = self._epoch_length
        self._hazards.advance()
        self._epoch = self._hazards.epoch
        slot, oldest = self._epoch % HORIZON, self._epoch - HORIZON
        filled = {rank % NUM_BUCKETS for rank in self._ranks}
        for c in range(CLASSES):
            bucket = c * SLOTS + slot
            if self._buckets[bucket]:
                self._ancient[c][oldest] = self._buckets[bucket]
                self._buckets[bucket] = []
                filled.add(c * SLOTS + ANCIENT)
        self._rank_all(filled)

    # The choice.

    def _rank(self, reuse_class: int, age: int) -> int:
        """Return the rank of a bucket: by level, within a level the older ones first, and then by class."""
        level = self._hazards.levels(reuse_class)[BIN_OF_AGE[min(age, HORIZON - 1)]]
        slot = (self._epoch - age) % HORIZON if age < HORIZON else ANCIENT
        return (level * SLOTS + HORIZON - min(age, HORIZON)) * NUM_BUCKETS + reuse_class * SLOTS + slot

    def _rank_all(self, filled: set[int]) -> None:
        """Rank anew those of the buckets that are not empty, as `_rank` does; they may be thousands."""
        ages = [*((self._epoch - slot) % HORIZON for slot in range(HORIZON)), HORIZON]
        places = [(HORIZON - age) * NUM_BUCKETS for age in ages]
        bins = [BIN_OF_AGE[min(age, HORIZON - 1)] for age in ages]
        buckets, ancient, levels = self._buckets, self._ancient, self._hazards.levels
        self._is_ranked = bytearray(NUM_BUCKETS)
        ranks, c, of_class = [], -1, list[int]()
        for bucket in sorted(filled):
            reuse_class, slot = divmod(bucket, SLOTS)
            if buckets[bucket] or (slot == ANCIENT and ancient[reuse_class]):
                if reuse_class != c:
                    c, of_class = reuse_class, levels(reuse_class)
                ranks.append(of_class[bins[slot]] * (SLOTS * NUM_BUCKETS) + places[slot] + bucket)
                self._is_ranked[bucket] = 1
        heapify(ranks)
        self._ranks = ranks

    def _add_leaf(self, node: L) -> None:
        use, age = node.use, self._epoch - node.epoch
        reuse_class = use.first_class + node.kind
        if age < HORIZON:
            bucket = reuse_class * SLOTS + node.epoch % HORIZON
            leaves = self._buckets[bucket]
        else:
            bucket = reuse_class * SLOTS + ANCIENT
            leaves = self._ancient[reuse_class].setdefault(node.epoch, [])
        if not self._is_ranked[bucket]:
            self._is_ranked[bucket] = 1
            heappush(self._ranks, self._rank(reuse_class, age))
        node.leaf_index = len(leaves)
        leaves.append(node)
        if use.leaves is not None:
            use.leaves[node] = None

    def _remove_leaf(self, node: L) -> None:
        use, epoch = node.use, node.epoch
        reuse_class = use.first_class + node.kind
        recent = self._epoch - epoch < HORIZON
        leaves = self._buckets[reuse_class * SLOTS + epoch % HORIZON] if recent else self._ancient[reuse_class][epoch]
        last = leaves.pop()
        if last is not node:
            leaves[node.leaf_index] = last
            last.leaf_index = node.leaf_index
        elif not (leaves or recent):
            del self._ancient[reuse_class][epoch]
        node.leaf_index = -1
        if use.leaves is not None:
            del use.leaves[node]

    def _first_leaves(self) -> list[L] | None:
        """Return the bucket to evict from, None if there is no leaf. Buckets that are found empty lose their ranks."""
        ranks = self._ranks
        while ranks:
            bucket = ranks[0] % NUM_BUCKETS
            if bucket % SLOTS != ANCIENT:
                leaves = self._buckets[bucket]
            else:
                leaves = next(iter(self._ancient[bucket // SLOTS].values()), [])
            if leaves:
                return leaves
            heappop(ranks)
            self._is_ranked[bucket] = 0
        return None

    def _choose_victim(self) -> L:
        leaves = self._first_leaves()
        if leaves is None:
            raise IndexError("no free block")
        return leaves[int(self._random() * len(leaves))]

    def _walk_leaves(self, after: L | None = None) -> Iterator[L]:
        """Bucket by bucket, each in the order of its array, which is as likely as any other."""
        passed = after is None
        for rank in sorted(self._ranks):
            bucket = rank % NUM_BUCKETS
            lists = [self._buckets[bucket]]
            if bucket % SLOTS == ANCIENT:
                lists = [*self._ancient[bucket // SLOTS].values()]
            for leaves in lists:
                if passed:
                    yield from leaves
                elif after is not None and after.leaf_index < len(leaves) and leaves[after.leaf_index] is after:
                    passed = True
                    yield from islice(leaves, after.leaf_index + 1, None)


class GIX(GittinsOrder[GittinsNode]):
    """The order without a guard, for study. `seed` fixes the random choice within a bucket."""

    name: ClassVar[str] = "gix"
    node_type = GittinsNode
