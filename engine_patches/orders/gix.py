"""GIX, an order by Gittins index: evict the leaf whose reuse is worth least for the space that it takes.

What a leaf is worth is its Gittins index, which follows from hazards of reuse that are learned online (`hazard`).

A key's class is 4 min(hits, 3) + 2 branch + back:
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

Cost: O(1) for each verb; at the end of an epoch about 1,000 buckets are ranked anew, whatever n is. GIX alone has no
bound against an adversary: `rlt_gix` is GIX under a guard.
"""

import random
from collections import OrderedDict
from collections.abc import Iterator
from itertools import islice
from typing import ClassVar, Generic, TypeVar

from engine_patches.orders.structures.ghost_list import GhostList
from engine_patches.orders.structures.hazard import BIN_OF_AGE, BINS, CLASSES, HORIZON, HazardTable
from engine_patches.orders.structures.leaf_order import LeafOrder
from engine_patches.orders.structures.node import BlockNode

MOST_HITS = 3
EPOCHS_IN_CAPACITY = 8
SHORTEST_EPOCH = 256  # accesses
GHOSTS_IN_CAPACITY = 4
SLOTS = HORIZON + 1  # buckets of a class: one for each recent epoch, and one for all leaves that are older
ANCIENT = HORIZON  # the slot of that last bucket


class GittinsNode(BlockNode):
    """A key with what GIX has learned of it."""

    __slots__ = ("age_at_use", "at_branch", "epoch", "had_child", "hits", "in_first_use", "reuse_class")

    def __init__(self) -> None:
        super().__init__()
        self.hits = 0
        self.reuse_class = 0  # the class, as the module defines it
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
        self._hazards = HazardTable(self._epoch_length, num_blocks)
        self._at_risk, self._events = self._hazards.at_risk, self._hazards.events
        self._ghosts = GhostList(GHOSTS_IN_CAPACITY * num_blocks)
        self._epoch = 0
        self._accesses_left = self._epoch_length
        # Free leaves by class * SLOTS + epoch % HORIZON; those of slot ANCIENT are in `_ancient`, by class and epoch.
        self._buckets: list[list[L]] = [[] for _ in range(CLASSES * SLOTS)]
        self._ancient: list[OrderedDict[int, list[L]]] = [OrderedDict() for _ in range(CLASSES)]
        self._rank = [0] * (CLASSES * SLOTS)  # by bucket: its rank in the order of eviction
        self._by_rank = [0] * (CLASSES * SLOTS)  # the bucket of each rank
        self._filled = 0  # bit r: the bucket of rank r is not empty
        self._rank_buckets(self._hazards.levels())

    # What is learned.

    def _on_access(self, node: L) -> None:
        age = node.age_at_use
        if age >= 0:
            node.age_at_use = -1
            if age < HORIZON:
                self._events[node.reuse_class * BINS + BIN_OF_AGE[age]] += 1
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
        parent: L | None = node.parent
        ghost = self._ghosts.pop(node.key)
        if ghost >= 0:
            node.in_first_use = False
            node.had_child, node.at_branch = bool(ghost & 1), bool(ghost & 2)
            node.hits = min(MOST_HITS, (ghost >> 2 & 3) + 1)
            reuse_class, epoch = ghost >> 4 & 15, ghost >> 8
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
            node.reuse_class = 4 * node.hits + 2 * node.at_branch + (2 * (last - node.position) <= last)
            node.epoch = self._epoch
            node.in_first_use = False
        node.age_at_use = -1
        if self._epoch - node.epoch < HORIZON:
            self._at_risk[node.reuse_class * HORIZON + node.epoch % HORIZON] += 1
        self._free(node)

    def _on_use(self, node: L) -> None:
        self._take(node)
        age = node.age_at_use = self._epoch - node.epoch
        if age < HORIZON:
            self._at_risk[node.reuse_class * HORIZON + node.epoch % HORIZON] -= 1

    def _on_loss(self, node: L, free: bool) -> None:
        if free and node.key is not None:  # evicted: it stays at risk as a ghost
            state = node.epoch << 8 | node.reuse_class << 4 | node.hits << 2 | node.at_branch << 1 | node.had_child
            expired = self._ghosts.add(node.key, state)
            if expired >= 0:
                epoch = expired >> 8
                if self._epoch - epoch < HORIZON:
                    self._at_risk[(expired >> 4 & 15) * HORIZON + epoch % HORIZON] -= 1
        elif free and self._epoch - node.epoch < HORIZON:
            self._at_risk[node.reuse_class * HORIZON + node.epoch % HORIZON] -= 1
        node.epoch = -1

    def _end_epoch(self) -> None:
        self._accesses_left = self._epoch_length
        levels = self._hazards.advance()
        self._epoch = self._hazards.epoch
        slot, oldest = self._epoch % HORIZON, self._epoch - HORIZON
        for c in range(CLASSES):
            bucket = c * SLOTS + slot
            if self._buckets[bucket]:
                self._ancient[c][oldest] = self._buckets[bucket]
                self._buckets[bucket] = []
        self._rank_buckets(levels)

    # The choice.

    def _rank_buckets(self, levels: list[int]) -> None:
        """Sort the buckets by level, and within a level the older ones first."""
        lowest = min(levels)
        of_level: list[list[int]] = [[] for _ in range(max(levels) - lowest + 1)]
        for age in range(HORIZON, -1, -1):
            slot = (self._epoch - age) % HORIZON if age < HORIZON else ANCIENT
            bin_ = BIN_OF_AGE[min(age, HORIZON - 1)]
            for c in range(CLASSES):
                of_level[levels[c * BINS + bin_] - lowest].append(c * SLOTS + slot)
        self._by_rank = [bucket for buckets in of_level for bucket in buckets]
        self._filled = 0
        for rank, bucket in enumerate(self._by_rank):
            self._rank[bucket] = rank
            if self._buckets[bucket] or (bucket % SLOTS == ANCIENT and self._ancient[bucket // SLOTS]):
                self._filled |= 1 << rank

    def _add_leaf(self, node: L) -> None:
        bucket = node.reuse_class * SLOTS + node.epoch % HORIZON
        if self._epoch - node.epoch < HORIZON:
            leaves = self._buckets[bucket]
        else:
            bucket = node.reuse_class * SLOTS + ANCIENT
            leaves = self._ancient[node.reuse_class].setdefault(node.epoch, [])
        if not leaves:
            self._filled |= 1 << self._rank[bucket]
        node.leaf_index = len(leaves)
        leaves.append(node)

    def _remove_leaf(self, node: L) -> None:
        recent = self._epoch - node.epoch < HORIZON
        if recent:
            bucket = node.reuse_class * SLOTS + node.epoch % HORIZON
            leaves = self._buckets[bucket]
        else:
            leaves = self._ancient[node.reuse_class][node.epoch]
        last = leaves.pop()
        if last is not node:
            leaves[node.leaf_index] = last
            last.leaf_index = node.leaf_index
        elif not leaves:
            if not recent:
                bucket = node.reuse_class * SLOTS + ANCIENT
                del self._ancient[node.reuse_class][node.epoch]
            if recent or not self._ancient[node.reuse_class]:
                self._filled &= ~(1 << self._rank[bucket])
        node.leaf_index = -1

    def _choose_victim(self) -> L:
        filled = self._filled
        if not filled:
            raise IndexError("no free block")
        bucket = self._by_rank[(filled & -filled).bit_length() - 1]
        leaves = self._buckets[bucket] or next(iter(self._ancient[bucket // SLOTS].values()))
        return leaves[int(self._random() * len(leaves))]

    def _walk_leaves(self, after: L | None = None) -> Iterator[L]:
        """Bucket by bucket, each in the order of its array, which is as likely as any other."""
        passed = after is None
        for bucket in self._by_rank:
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
