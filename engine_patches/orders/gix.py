"""GIX: evict the leaf whose reuse is worth least for the space it takes, by hazards learned online (`hazard`).

A key's class is 4 min(hits, 3) + 2 branch + back:
- hits: accesses since it was first cached, evictions in between included as long as they are remembered;
- branch: it belongs to a stretch that was born where the tree forked, below a key that had a child already. All that
  one request adds below the deepest key known before it is one stretch; keys at a root, and those that go on from a
  leaf (the next turn of a conversation), are not born at a branch;
- back: it lay in the back half of the request that used it last.
So shared prefixes, diverging tails, and heads of new prompts are told apart, and what each is worth is learned.

Time is counted in accesses: D = max(256, n/8) make an epoch. Inside an engine, where requests run side by side:
- an access is a hit of a cached block, or a block that gets its hash, prefilled or generated; a block computed twice
  is an access of the key it gets;
- a key is at risk while no request uses it. A hit of a key at risk is an event at its age; a hit of a key in use only
  counts in `hits`, and a pin without reuse (an offload that copies) is no event, nor does it rejuvenate;
- class and epoch are taken when the last user gives the key back, when the request's length is known, generated
  blocks included. With several groups of layers the length counts in the blocks of the key's own group;
- a preempted request gives its blocks back and hits what is left of them later: two uses, as for any other reader.

Free leaves stand in a bucket for each class and epoch of last use, so the victim is exact: the first non-empty bucket
by (level, older first), a random leaf of it. Leaves unused for HORIZON epochs keep their bucket and are ranked as one,
oldest bucket first. Evicted keys are remembered as ghosts, 4 n of them: their reuse is an event, and their class
lives on.

Cost: O(1) a verb; at the end of an epoch about 1,000 buckets are ranked anew, whatever n. Alone it has no bound
against an adversary: `rlt_gix` is GIX under a guard.
"""

import random
from collections import OrderedDict
from collections.abc import Iterator
from itertools import islice
from typing import ClassVar, Generic, TypeVar

from engine_patches.orders.structures.forest import Forest
from engine_patches.orders.structures.ghosts import Ghosts
from engine_patches.orders.structures.hazard import BIN_OF_AGE, BINS, CLASSES, HORIZON, Hazards
from engine_patches.orders.structures.node import Holder

MOST_HITS = 3
EPOCHS_IN_CAPACITY = 8
SHORTEST_EPOCH = 256  # accesses
GHOSTS_IN_CAPACITY = 4
SLOTS = HORIZON + 1  # buckets of a class: one an epoch, and one for all that is older
ANCIENT = HORIZON


class Leaf(Holder):
    """`epoch` -1: not accessed yet. `waited`: its age when it was taken into use, -1 once that use is accounted for."""

    __slots__ = ("branch", "cell", "epoch", "had_child", "hits", "waited", "young")

    def __init__(self) -> None:
        super().__init__()
        self.hits = self.cell = 0  # cell: its class
        self.epoch = self.waited = -1
        self.branch = self.had_child = False
        self.young = True  # new, and its first request still runs


L = TypeVar("L", bound=Leaf)


class Gittins(Forest[L], Generic[L]):
    """`gix` without its name: the part that `rlt_gix` shares."""

    randomized: ClassVar[bool] = True

    def __init__(self, num_blocks: int, seed: int | None = None) -> None:
        super().__init__(num_blocks)
        self._lot = random.Random(seed).random
        self._length = max(SHORTEST_EPOCH, num_blocks // EPOCHS_IN_CAPACITY)
        self._hazards = Hazards(self._length, num_blocks)
        self._alive, self._events = self._hazards.alive, self._hazards.events
        self._ghosts = Ghosts(GHOSTS_IN_CAPACITY * num_blocks)
        self._epoch = 0
        self._accesses_left = self._length
        # Free leaves by class * SLOTS + epoch % HORIZON; those of the last slot are in `_ancient`, by class and epoch.
        self._buckets: list[list[L]] = [[] for _ in range(CLASSES * SLOTS)]
        self._ancient: list[OrderedDict[int, list[L]]] = [OrderedDict() for _ in range(CLASSES)]
        self._rank = [0] * (CLASSES * SLOTS)  # by bucket: its place in the order of eviction
        self._by_rank = [0] * (CLASSES * SLOTS)
        self._filled = 0  # bit r: the bucket of rank r is not empty
        self._rank_buckets(self._hazards.levels())

    # What is learned.

    def _touch(self, node: L) -> None:
        waited = node.waited
        if waited >= 0:
            node.waited = -1
            if waited < HORIZON:
                self._events[node.cell * BINS + BIN_OF_AGE[waited]] += 1
        if node.epoch < 0:
            self._bear(node)
        elif node.hits < MOST_HITS:
            node.hits += 1
        self._accesses_left -= 1
        if not self._accesses_left:
            self._end_epoch()

    def _bear(self, node: L) -> None:
        """The first access of a key that was not cached."""
        node.epoch = self._epoch
        parent: L | None = node.parent
        ghost = self._ghosts.take(node.key)
        if ghost >= 0:
            node.young = False
            node.had_child, node.branch = bool(ghost & 1), bool(ghost & 2)
            node.hits = min(MOST_HITS, (ghost >> 2 & 3) + 1)
            cell, epoch = ghost >> 4 & 15, ghost >> 8
            age = self._epoch - epoch
            if age < HORIZON:
                self._alive[cell * HORIZON + epoch % HORIZON] -= 1
                self._events[cell * BINS + BIN_OF_AGE[age]] += 1
        else:
            node.young = True
            node.had_child, node.hits = False, 0
            # Below a key of its own request it belongs to that one's stretch.
            node.branch = parent is not None and (
                parent.branch if parent.young and not parent.had_child else parent.had_child
            )
        if parent is not None:
            parent.had_child = True

    def _give_back(self, node: L, last: int) -> None:
        if last >= 0:
            node.cell = 4 * node.hits + 2 * node.branch + (2 * (last - node.position) <= last)
            node.epoch = self._epoch
            node.young = False
        node.waited = -1
        if self._epoch - node.epoch < HORIZON:
            self._alive[node.cell * HORIZON + node.epoch % HORIZON] += 1
        self._free(node)

    def _use(self, node: L) -> None:
        self._take(node)
        age = node.waited = self._epoch - node.epoch
        if age < HORIZON:
            self._alive[node.cell * HORIZON + node.epoch % HORIZON] -= 1

    def _forget(self, node: L, free: bool) -> None:
        if free and node.key is not None:  # stays at risk
            state = node.epoch << 8 | node.cell << 4 | node.hits << 2 | node.branch << 1 | node.had_child
            expired = self._ghosts.add(node.key, state)
            if expired >= 0:
                epoch = expired >> 8
                if self._epoch - epoch < HORIZON:
                    self._alive[(expired >> 4 & 15) * HORIZON + epoch % HORIZON] -= 1
        elif free and self._epoch - node.epoch < HORIZON:
            self._alive[node.cell * HORIZON + node.epoch % HORIZON] -= 1
        node.epoch = -1

    def _end_epoch(self) -> None:
        self._accesses_left = self._length
        levels = self._hazards.advance()
        self._epoch = self._hazards.epoch
        slot, oldest = self._epoch % HORIZON, self._epoch - HORIZON
        for cell in range(CLASSES):
            bucket = cell * SLOTS + slot
            if self._buckets[bucket]:
                self._ancient[cell][oldest] = self._buckets[bucket]
                self._buckets[bucket] = []
        self._rank_buckets(levels)

    # The choice.

    def _rank_buckets(self, levels: list[int]) -> None:
        """By level, the older first within one."""
        lowest = min(levels)
        of_level: list[list[int]] = [[] for _ in range(max(levels) - lowest + 1)]
        for age in range(HORIZON, -1, -1):
            slot = (self._epoch - age) % HORIZON if age < HORIZON else ANCIENT
            bin_ = BIN_OF_AGE[min(age, HORIZON - 1)]
            for cell in range(CLASSES):
                of_level[levels[cell * BINS + bin_] - lowest].append(cell * SLOTS + slot)
        self._by_rank = [bucket for buckets in of_level for bucket in buckets]
        self._filled = 0
        for rank, bucket in enumerate(self._by_rank):
            self._rank[bucket] = rank
            if self._buckets[bucket] or (bucket % SLOTS == ANCIENT and self._ancient[bucket // SLOTS]):
                self._filled |= 1 << rank

    def _join_leaves(self, node: L) -> None:
        bucket = node.cell * SLOTS + node.epoch % HORIZON
        if self._epoch - node.epoch < HORIZON:
            leaves = self._buckets[bucket]
        else:
            bucket = node.cell * SLOTS + ANCIENT
            leaves = self._ancient[node.cell].setdefault(node.epoch, [])
        if not leaves:
            self._filled |= 1 << self._rank[bucket]
        node.place = len(leaves)
        leaves.append(node)

    def _leave_leaves(self, node: L) -> None:
        recent = self._epoch - node.epoch < HORIZON
        if recent:
            bucket = node.cell * SLOTS + node.epoch % HORIZON
            leaves = self._buckets[bucket]
        else:
            leaves = self._ancient[node.cell][node.epoch]
        last = leaves.pop()
        if last is not node:
            leaves[node.place] = last
            last.place = node.place
        elif not leaves:
            if not recent:
                bucket = node.cell * SLOTS + ANCIENT
                del self._ancient[node.cell][node.epoch]
            if recent or not self._ancient[node.cell]:
                self._filled &= ~(1 << self._rank[bucket])
        node.place = -1

    def _draw(self) -> L:
        filled = self._filled
        if not filled:
            raise IndexError("no free block")
        bucket = self._by_rank[(filled & -filled).bit_length() - 1]
        leaves = self._buckets[bucket] or next(iter(self._ancient[bucket // SLOTS].values()))
        return leaves[int(self._lot() * len(leaves))]

    def _leaves(self, after: L | None = None) -> Iterator[L]:
        """By bucket; within one in array order, as likely as any other."""
        passed = after is None
        for bucket in self._by_rank:
            lists = [self._buckets[bucket]]
            if bucket % SLOTS == ANCIENT:
                lists = [*self._ancient[bucket // SLOTS].values()]
            for leaves in lists:
                if passed:
                    yield from leaves
                elif after is not None and after.place < len(leaves) and leaves[after.place] is after:
                    passed = True
                    yield from islice(leaves, after.place + 1, None)


class GIX(Gittins[Leaf]):
    """Unguarded, for study. `seed` fixes the lots within a bucket."""

    name: ClassVar[str] = "gix"
    node_type = Leaf
