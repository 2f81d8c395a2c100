"""The blocks of one engine of the survival index, ordered by generations of when they were last touched.

A generation lasts until as many blocks have been touched as a sixteenth of the engine's capacity. The last 128
generations are told apart. Older blocks lie together in the first of them, in the order in which they were touched. So
the blocks that an engine keeps for long, while others come and go, stay known.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field

from router.prefix.restart_watch import RestartWatch
from router.prefix.survival_curve import EDGES, SurvivalCurve
from router.types import BlockKey, EngineId

GENERATIONS_IN_CAPACITY = 16
MOST_GENERATIONS = 128
IN_USE = 1 << 62
"""The mark of a block that n unfinished requests hold is IN_USE + n. Smaller marks are generations."""


@dataclass(slots=True)
class EngineRecency:
    """`lists[g - first]` holds the keys that were touched in generation g; the first list also holds all older keys.

    A key may be in several lists. It counts in the last of them, and in none while a request holds it. The rank of a
    generation is how many blocks were touched after it, divided by the engine's capacity.
    """

    engine: EngineId
    number: int  # in the block map
    curve: SurvivalCurve
    capacity_tokens: float
    block_tokens: float | None = None  # running mean of the size of an index block
    first: int = 0  # the generation of the first list
    lists: list[list[BlockKey]] = field(default_factory=lambda: [[]])
    counts: list[int] = field(default_factory=lambda: [0])  # keys that count in each list
    ranks: list[float] = field(default_factory=lambda: [0.0])  # of each generation, when the present one began
    touched: int = 0  # blocks touched in the present generation
    touched_capacities: float = 0.0  # the same, divided by the capacity
    unfinished: dict[int, Sequence[BlockKey]] = field(default_factory=dict)  # prompts of requests, by serial
    serial: int = 0  # of the newest request
    in_use: int = 0  # blocks that unfinished requests hold
    watch: RestartWatch = field(default_factory=RestartWatch)  # touches are generations
    surplus: int = 0  # blocks beyond the limits that are yet to be dropped

    @property
    def generation(self) -> int:
        """The present generation."""
        return self.first + len(self.lists) - 1

    def blocks(self) -> int:
        return sum(self.counts) + self.in_use

    def capacity_blocks(self) -> float:
        return max(1.0, self.capacity_tokens / (self.block_tokens or 1.0))

    def bin_of(self, generation: int) -> int:
        """The bin of the survival curve for blocks that were last touched in that generation."""
        return bisect_right(EDGES, self.ranks[max(0, generation - self.first)] + self.touched_capacities)

    def uncount(self, generation: int, keys: int) -> None:
        """This number of keys, last touched in that generation, counts there no longer."""
        self.counts[max(0, generation - self.first)] -= keys

    def join(self, keys: Sequence[BlockKey]) -> None:
        """The keys count in the present generation from now on."""
        self.lists[-1] += keys
        self.counts[-1] += len(keys)

    def learn_size(self, block_tokens: float) -> None:
        """A prompt was placed whose index blocks hold this number of tokens."""
        if self.block_tokens is None:
            self.block_tokens = block_tokens
        self.block_tokens += (block_tokens - self.block_tokens) / 16

    def age(self, touches: int, limit: float) -> bool:
        """This number of blocks was touched. Returns whether that began a new generation; the caller must call `rank`
        then. limit: the most blocks that may be kept for this engine. If that is less than the capacity, generations
        are shorter, because the caller enforces the limit only when one begins."""
        capacity = self.capacity_blocks()
        self.touched += touches
        self.touched_capacities = self.touched / capacity
        if self.touched * GENERATIONS_IN_CAPACITY < min(capacity, limit):
            return False
        self.begin_generation()
        return True

    def begin_generation(self) -> None:
        """What is touched from now on is of a new generation. The caller must call `rank` then."""
        self.touched, self.touched_capacities = 0, 0.0
        self.lists.append([])
        self.counts.append(0)
        if len(self.lists) > MOST_GENERATIONS:
            self.lists[0] += self.lists.pop(1)
            self.counts[0] += self.counts.pop(1)
            self.first += 1

    def forget_until(self, generation: int) -> list[BlockKey]:
        """Remove that generation and all older ones, of which the present one is none. Returns the keys in their lists.
        The caller must call `rank` then."""
        lists = max(0, generation - self.first + 1)
        keys = [key for each in self.lists[:lists] for key in each]
        del self.lists[:lists], self.counts[:lists]
        self.first += lists
        return keys

    def drop(self, entries: int, keys: int) -> None:
        """Remove this number of entries from the beginning of the oldest list, of which `keys` counted there."""
        del self.lists[0][:entries]
        self.counts[0] -= keys
        if not self.lists[0]:
            del self.lists[0], self.counts[0]
            self.first += 1

    def rank(self) -> None:
        """Compute all ranks anew. Half of a generation counts as touched after it, and everything younger does."""
        capacity, younger = self.capacity_blocks(), float(self.in_use)
        self.ranks = [0.0] * len(self.counts)
        for place in range(len(self.counts) - 1, -1, -1):
            self.ranks[place] = (younger + self.counts[place] / 2) / capacity
            younger += self.counts[place]

    def clear(self) -> None:
        """The engine's cache is empty."""
        self.unfinished.clear()
        self.lists, self.counts, self.ranks = [[]], [0], [0.0]
        self.in_use, self.touched, self.touched_capacities, self.surplus = 0, 0, 0.0, 0
        self.watch.clear()
