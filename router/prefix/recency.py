"""One engine's blocks in the survival index by when they were last touched, in generations.

A generation is a sixteenth of the engine's capacity in touches. The last 128 are told apart; what is older lies
together, in the order of its touches. So what an engine keeps for long, while others come and go, stays known.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field

from router.prefix.survival_curve import EDGES, SurvivalCurve
from router.types import BlockKey, EngineId

GENERATIONS_IN_CAPACITY = 16
MOST_GENERATIONS = 128
IN_USE = 1 << 62  # and so many more: the mark of a block that as many unfinished requests hold


@dataclass(slots=True)
class EngineRecency:
    """`lists[g - first]`: keys touched in generation g, the first also of those before it. A key may be in several; it
    counts in the last of them, and nowhere while in use."""

    engine: EngineId
    number: int
    curve: SurvivalCurve
    capacity_tokens: float
    block_tokens: float | None = None  # mean size of an index block here
    first: int = 0
    lists: list[list[BlockKey]] = field(default_factory=lambda: [[]])
    counts: list[int] = field(default_factory=lambda: [0])  # keys that count in each
    ranks: list[float] = field(default_factory=lambda: [0.0])  # of each, in capacities, when the last one began
    touched: int = 0  # since then
    since: float = 0.0  # the same in capacities
    open: dict[int, Sequence[BlockKey]] = field(default_factory=dict)  # prompts of unfinished requests, by serial
    serial: int = 0  # of the last of them
    held: int = 0  # blocks in use
    losses: int = 0  # certain hits lost in a row

    @property
    def generation(self) -> int:
        """The present one."""
        return self.first + len(self.lists) - 1

    def blocks(self) -> int:
        return sum(self.counts) + self.held

    def capacity_blocks(self) -> float:
        return max(1.0, self.capacity_tokens / (self.block_tokens or 1.0))

    def bin_of(self, generation: int) -> int:
        return bisect_right(EDGES, self.ranks[max(0, generation - self.first)] + self.since)

    def take(self, generation: int, keys: int) -> None:
        """So many keys of that generation do not count in it any more."""
        self.counts[max(0, generation - self.first)] -= keys

    def join(self, keys: Sequence[BlockKey]) -> None:
        """The keys count in the present generation from now on."""
        self.lists[-1] += keys
        self.counts[-1] += len(keys)

    def learn_size(self, block_tokens: float) -> None:
        if self.block_tokens is None:
            self.block_tokens = block_tokens
        self.block_tokens += (block_tokens - self.block_tokens) / 16

    def age(self, touches: int, most: float) -> bool:
        """So many blocks were touched. Whether a new generation has begun; if so, `rank` is due. most: blocks that may
        be kept here; where they are less than the capacity, generations are shorter, so that the cap is looked at."""
        capacity = self.capacity_blocks()
        self.touched += touches
        self.since = self.touched / capacity
        if self.touched * GENERATIONS_IN_CAPACITY < min(capacity, most):
            return False
        self.touched, self.since = 0, 0.0
        self.lists.append([])
        self.counts.append(0)
        if len(self.lists) > MOST_GENERATIONS:
            self.lists[0] += self.lists.pop(1)
            self.counts[0] += self.counts.pop(1)
            self.first += 1
        return True

    def drop(self, entries: int, keys: int) -> None:
        """The first entries of the oldest list are gone, and with them so many keys that counted there."""
        del self.lists[0][:entries]
        self.counts[0] -= keys
        if not self.lists[0]:
            del self.lists[0], self.counts[0]
            self.first += 1

    def rank(self) -> None:
        """ranks anew: half of a generation, and all that is younger."""
        capacity, younger = self.capacity_blocks(), float(self.held)
        self.ranks = [0.0] * len(self.counts)
        for place in range(len(self.counts) - 1, -1, -1):
            self.ranks[place] = (younger + self.counts[place] / 2) / capacity
            younger += self.counts[place]

    def clear(self) -> None:
        """The cache is empty."""
        self.open.clear()
        self.lists, self.counts, self.ranks = [[]], [0], [0.0]
        self.held, self.touched, self.since, self.losses = 0, 0, 0.0, 0
