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

Each class knows its buckets that may have leaves, as bits by age, and the first of them. What a class is worth is
computed once an epoch when it has leaves, that of a class with a session every fourth epoch.

Cost: O(1) for each verb, with CLASSES steps when a bucket becomes empty or an epoch ends, whatever n is. GIX alone has
no bound against an adversary: `rlt_gix` is GIX under a guard.
"""

import random
from collections import OrderedDict
from collections.abc import Hashable, Iterable, Iterator, Sequence
from itertools import islice
from typing import ClassVar, Generic, TypeVar

from engine_patches.orders.structures.ghost_list import GhostList
from engine_patches.orders.structures.hazard import BIN_OF_AGE, BINS, HORIZON, HazardTable
from engine_patches.orders.structures.leaf_order import LeafOrder
from engine_patches.orders.structures.node import BlockNode
from engine_patches.orders.structures.sessions import (
    RETURN_CLASSES,
    UNKNOWN,
    Cohort,
    Session,
    SessionTable,
    Use,
    return_class,
)

KINDS = 16  # what makes a class, but for the return class
CLASSES = KINDS * RETURN_CLASSES
MOST_HITS = 3
EPOCHS_IN_CAPACITY = 8
SHORTEST_EPOCH = 256  # accesses
GHOSTS_IN_CAPACITY = 4
SLOTS = HORIZON + 1  # places of a class's buckets: one for each recent epoch, and one for all leaves that are older
NO_RANK = 1 << 62  # behind all ranks


NO_USE = Use(Cohort(UNKNOWN, -1, [0] * KINDS), None)
"""That of a key that was not accessed yet."""


class GittinsNode(BlockNode):
    """A key with what GIX has learned of it."""

    __slots__ = ("age_at_use", "at_branch", "had_child", "hits", "in_first_use", "kind", "session", "use")

    def __init__(self) -> None:
        super().__init__()
        self.hits = 0
        self.kind = 0  # the class, as the module defines it, is `use.first_class + kind`
        self.use = NO_USE  # the last one
        self.session: Session | None = None  # the session of the request that was assigned to the key
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
        self._hazards = HazardTable(KINDS, self._epoch_length, num_blocks, RETURN_CLASSES)
        self._at_risk, self._events = self._hazards.at_risk, self._hazards.events
        self._ghosts = GhostList(GHOSTS_IN_CAPACITY * num_blocks)
        self._sessions = SessionTable()
        self._epoch = 0
        self._accesses_left = self._epoch_length
        # Free leaves by epoch % HORIZON, return class and kind. Those of older epochs are in `_ancient`, by class and
        # epoch.
        self._cohorts: list[list[Cohort]] = [[] for _ in range(HORIZON)]
        self._ancient: list[OrderedDict[int, list[L]]] = [OrderedDict() for _ in range(CLASSES)]
        # By class: the places (`hazard.PLACES`) of its buckets, one bit for each that is not empty, and for some that
        # have become empty; the lowest rank of these buckets; and the lowest of all.
        self._places = [0] * CLASSES
        self._ranks = [NO_RANK] * CLASSES
        self._first_rank = NO_RANK
        self._begin_epoch()
        self._use = self._no_session  # of the blocks that are being given back

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
        elif self._epoch - known.use.epoch < HORIZON:
            self._move(known.use, self._cohorts[known.use.epoch % HORIZON][told])

    def _move(self, use: Use, cohort: Cohort) -> None:
        """The keys of the use are of another return class from now on: those at risk, and the leaves among them."""
        assert use.leaves is not None
        if use.first_class == cohort.first_class:
            return
        leaves = list(use.leaves)
        for node in leaves:
            self._remove_leaf(node)
        for kind, count in enumerate(use.counts):
            if count:
                use.at_risk[kind] -= count
                cohort.at_risk[kind] += count
        use.join(cohort)
        for node in leaves:
            self._add_leaf(node)

    def release(self, blocks: Sequence[int]) -> None:
        node = self._node_of[blocks[0]] if blocks else None
        session = None if node is None else node.session
        self._use = self._no_session
        if session is not None:
            expected = session.told or self._sessions.predict(session)
            session.told = UNKNOWN
            self._use = session.use = Use(self._cohorts[self._epoch % HORIZON][expected], {})
        LeafOrder.release(self, blocks)

    # What is learned.

    def _on_access(self, node: L) -> None:
        age = node.age_at_use
        if age >= 0:
            node.age_at_use = -1
            if age < HORIZON:
                self._events[(node.use.first_class + node.kind) * BINS + BIN_OF_AGE[age]] += 1
        if node.use is NO_USE:
            self._first_access(node)
        elif node.hits < MOST_HITS:
            node.hits += 1
        self._accesses_left -= 1
        if not self._accesses_left:
            self._end_epoch()

    def _first_access(self, node: L) -> None:
        """Initialise the node of a key that was not cached until this access, from its ghost if there is one."""
        node.use = self._no_session
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
                self._at_risk[epoch % HORIZON][reuse_class // KINDS][reuse_class % KINDS] -= 1
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
            node.in_first_use = False
        node.age_at_use = -1
        use, kind = node.use, node.kind
        use.counts[kind] += 1
        use.at_risk[kind] += 1
        self._free(node)

    def _on_use(self, node: L) -> None:
        self._take(node)
        use, kind = node.use, node.kind
        use.counts[kind] -= 1
        use.at_risk[kind] -= 1
        node.age_at_use = self._epoch - use.epoch

    def _on_loss(self, node: L, free: bool) -> None:
        use, kind = node.use, node.kind
        if free:
            use.counts[kind] -= 1
            if node.key is None:
                use.at_risk[kind] -= 1
            else:  # evicted: it stays at risk as a ghost
                state = use.epoch << 12 | (use.first_class + kind) << 4 | node.hits << 2 | node.at_branch << 1
                expired = self._ghosts.add(node.key, state | node.had_child)
                if expired >= 0 and self._epoch - (expired >> 12) < HORIZON:
                    reuse_class = expired >> 4 & 255
                    self._at_risk[(expired >> 12) % HORIZON][reuse_class // KINDS][reuse_class % KINDS] -= 1
        node.use, node.session = NO_USE, None

    def _end_epoch(self) -> None:
        self._accesses_left = self._epoch_length
        self._hazards.advance()
        self._epoch = self._hazards.epoch
        oldest = self._epoch - HORIZON
        for cohort in self._cohorts[self._epoch % HORIZON]:
            for reuse_class, leaves in enumerate(cohort.buckets, cohort.first_class):
                if leaves:
                    self._ancient[reuse_class][oldest] = leaves
        self._begin_epoch()
        for reuse_class, places in enumerate(self._places):
            if places:
                self._places[reuse_class] = places >> 1 | places & 1  # an epoch older
                self._rank_class(reuse_class)
        self._first_rank = min(self._ranks)

    def _begin_epoch(self) -> None:
        """Make the cohorts of this epoch."""
        slot = self._epoch % HORIZON
        at_risk = enumerate(self._at_risk[slot])
        self._cohorts[slot] = [Cohort(KINDS * group, self._epoch, counts) for group, counts in at_risk]
        self._no_session = Use(self._cohorts[slot][UNKNOWN], None)  # of all requests without a session

    # The choice.

    def _rank_class(self, reuse_class: int) -> None:
        """Find the lowest rank of the class: by level, within a level the older ones first, and then by class."""
        places, rank = self._places[reuse_class], NO_RANK
        if places:
            for level, of_level in self._hazards.steps(reuse_class):
                if found := places & of_level:
                    place = (found & -found).bit_length() - 1
                    rank = (level * SLOTS + place) * CLASSES + reuse_class
                    break
        self._ranks[reuse_class] = rank

    def _add_leaf(self, node: L) -> None:
        use = node.use
        leaves = use.buckets[node.kind]
        if not leaves:
            self._open(use, node.kind)
        node.leaf_index = len(leaves)
        leaves.append(node)
        if use.leaves is not None:
            use.leaves[node] = None

    def _open(self, use: Use, kind: int) -> None:
        """The bucket, which is empty, is about to get a leaf."""
        reuse_class, age = use.first_class + kind, self._epoch - use.epoch
        if age >= HORIZON:
            age = HORIZON
            self._ancient[reuse_class][use.epoch] = use.buckets[kind]
        place = HORIZON - age
        if not self._places[reuse_class] >> place & 1:
            self._places[reuse_class] |= 1 << place
            level = self._hazards.levels(reuse_class)[BIN_OF_AGE[min(age, HORIZON - 1)]]
            rank = (level * SLOTS + place) * CLASSES + reuse_class
            self._ranks[reuse_class] = min(self._ranks[reuse_class], rank)
            self._first_rank = min(self._first_rank, rank)

    def _remove_leaf(self, node: L) -> None:
        use = node.use
        leaves = use.buckets[node.kind]
        last = leaves.pop()
        if last is not node:
            leaves[node.leaf_index] = last
            last.leaf_index = node.leaf_index
        elif not leaves and self._epoch - use.epoch >= HORIZON:
            del self._ancient[use.first_class + node.kind][use.epoch]
        node.leaf_index = -1
        if use.leaves is not None:
            del use.leaves[node]

    def _leaves_at(self, rank: int) -> Iterable[list[L]]:
        """Return the lists of the leaves of a rank, the older ones first."""
        rest, reuse_class = divmod(rank, CLASSES)
        place = rest % SLOTS
        if place == 0:
            return self._ancient[reuse_class].values()
        return (self._cohorts[(self._epoch + place) % HORIZON][reuse_class // KINDS].buckets[reuse_class % KINDS],)

    def _first_leaves(self) -> list[L] | None:
        """Return the bucket to evict from, None if there is no leaf. Buckets that are found empty lose their bits."""
        while (rank := self._first_rank) != NO_RANK:
            leaves = next(iter(self._leaves_at(rank)), None)
            if leaves:
                return leaves
            rest, reuse_class = divmod(rank, CLASSES)
            self._places[reuse_class] ^= 1 << rest % SLOTS
            self._rank_class(reuse_class)
            self._first_rank = min(self._ranks)
        return None

    def _choose_victim(self) -> L:
        leaves = self._first_leaves()
        if leaves is None:
            raise IndexError("no free block")
        return leaves[int(self._random() * len(leaves))]

    def _walk_leaves(self, after: L | None = None) -> Iterator[L]:
        """Bucket by bucket, each in the order of its array, which is as likely as any other."""
        passed = after is None
        ranks = (
            (level * SLOTS + place) * CLASSES + c
            for c, places in enumerate(self._places)
            if places
            for level, of_level in self._hazards.steps(c)
            for place in range(SLOTS)
            if places & of_level & 1 << place
        )
        for rank in sorted(ranks):
            for leaves in self._leaves_at(rank):
                if passed:
                    yield from leaves
                elif after is not None and after.leaf_index < len(leaves) and leaves[after.leaf_index] is after:
                    passed = True
                    yield from islice(leaves, after.leaf_index + 1, None)


class GIX(GittinsOrder[GittinsNode]):
    """The order without a guard, for study. `seed` fixes the random choice within a bucket."""

    name: ClassVar[str] = "gix"
    node_type = GittinsNode
