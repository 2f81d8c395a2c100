"""What an engine with a learned or randomized eviction order is believed to hold: how likely a block survives, by age.

For each engine, a block's age is its *rank*: how many index blocks were touched after it, over the engine's capacity.
The chance that it is still cached is a curve over 16 bins of rank, learned from the `cached_tokens` that answers
report; engines of one eviction order share a curve. Along a prompt a block survives at most as well as its parent,
and blocks of unfinished requests are certain, so the expected prefix of a prompt on an engine is

    hit = sum over blocks of p_k,   p_k = 1 if in use there, else min(p_(k-1), S[bin(rank_k)])

until the first block that the engine was never sent. Nothing is assumed of the order but that age tells something; an
index that evicts by LRU (`prefix`) is wrong about engines that keep old prefixes and drop young tails.

Ages are counted in generations, sixteen to a capacity, and the blocks of a path that were touched together share one
tuple of (engine, generation) marks. So one walk answers for all engines: a dictionary look-up a block, and work for
each engine only where the marks change.

Memory: at most `max_blocks` (block, engine) pairs, shared evenly by the engines, and no more than 8 capacities each.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field

from router.learners.curve import EDGES, Curve
from router.types import BlockKey, EngineId, Lookup

GENERATIONS_IN_CAPACITY = 16
CAPACITIES = 8
IN_USE = 1 << 62  # the generation of a block that an unfinished request holds
FLUSH_LOSSES = 2
"""Certain hits that must be lost in a row before the engine counts as flushed."""


@dataclass(slots=True)
class _Shelf:
    """One engine's part. `lists[g - first]`: keys touched in generation g; a key counts in the last of them only."""

    number: int
    curve: Curve
    capacity_tokens: float
    block_tokens: float | None = None  # mean size of an index block here
    first: int = 0
    lists: list[list[BlockKey]] = field(default_factory=lambda: [[]])
    counts: list[int] = field(default_factory=lambda: [0])  # keys that count in each
    ranks: list[float] = field(default_factory=lambda: [0.0])  # of each, in capacities, when the last one began
    touched: int = 0  # since then
    in_use: dict[BlockKey, int] = field(default_factory=dict)  # requests that hold the block
    losses: int = 0  # certain hits lost in a row

    @property
    def generation(self) -> int:
        return self.first + len(self.lists) - 1

    def capacity_blocks(self) -> float:
        return max(1.0, self.capacity_tokens / (self.block_tokens or 1.0))

    def bin_of(self, generation: int) -> int:
        rank = self.ranks[generation - self.first] + self.touched / self.capacity_blocks()
        return bisect_right(EDGES, rank)


Marks = dict[int, int]
"""Engine number -> generation of one or more blocks. Shared by the blocks of a path, so never changed in place."""


class SurvivalIndex:
    """The index for engines that do not evict by LRU. Verbs as in `prefix.PrefixIndex`; lengths are index blocks."""

    def __init__(self, max_blocks: int) -> None:
        self._max_blocks = max_blocks
        self._shelves: dict[EngineId, _Shelf] = {}
        self._engine_of: dict[int, EngineId] = {}
        self._marks: dict[BlockKey, Marks] = {}
        self.curves: dict[str, Curve] = {}  # by order

    def __len__(self) -> int:
        """(block, engine) pairs held."""
        return sum(self.blocks(engine) for engine in self._shelves)

    def __contains__(self, engine: EngineId) -> bool:
        return engine in self._shelves

    def add(self, engine: EngineId, capacity_tokens: float, order: str) -> None:
        """A new engine under that order, or a known one that tells another size: what it held stays."""
        shelf = self._shelves.get(engine)
        curve = self.curves.setdefault(order, Curve())
        if shelf is None:
            number = next(n for n in range(len(self._shelves) + 1) if n not in self._engine_of)
            self._shelves[engine] = _Shelf(number, curve, capacity_tokens)
            self._engine_of[number] = engine
        else:
            shelf.capacity_tokens, shelf.curve = capacity_tokens, curve

    def remove(self, engine: EngineId) -> None:
        self.forget(engine)
        del self._engine_of[self._shelves.pop(engine).number]

    def forget(self, engine: EngineId) -> None:
        """The engine's cache is empty, as after a restart."""
        shelf = self._shelves[engine]
        while len(shelf.lists) > 1:
            self._drop_oldest(shelf)
        self._unmark(shelf, [key for key in shelf.lists[0] if key not in shelf.in_use])
        self._unmark(shelf, list(shelf.in_use))
        shelf.in_use.clear()
        shelf.lists, shelf.counts, shelf.ranks = [[]], [0], [0.0]
        shelf.touched = shelf.losses = 0

    def blocks(self, engine: EngineId) -> int:
        shelf = self._shelves[engine]
        return sum(shelf.counts) + len(shelf.in_use)

    def capacity_tokens(self, engine: EngineId) -> float:
        return self._shelves[engine].capacity_tokens

    def match(self, keys: Sequence[BlockKey]) -> dict[EngineId, float]:
        """Blocks of the prompt that each engine is expected to hold; engines that were sent none are left out."""
        found: dict[EngineId, float] = {}
        hopes: dict[int, tuple[float, float]] | None = None  # engine number -> p, sum of p
        for marks, length in self._runs(keys):
            numbers = marks if hopes is None else hopes.keys() & marks.keys()
            if hopes is not None and len(numbers) < len(hopes):
                found.update((self._engine_of[n], e) for n, (_, e) in hopes.items() if n not in marks)
            still = {}
            for number in numbers:
                p, expected = (1.0, 0.0) if hopes is None else hopes[number]
                generation = marks[number]
                if generation == IN_USE:
                    still[number] = p, expected + length
                else:
                    shelf = self._shelves[self._engine_of[number]]
                    p = min(p, shelf.curve.chance[shelf.bin_of(generation)])
                    still[number] = p, expected + p * length
            hopes = still
            if not hopes:
                break
        found.update((self._engine_of[n], e) for n, (_, e) in (hopes or {}).items())
        return found

    def _runs(self, keys: Sequence[BlockKey]) -> list[tuple[Marks, int]]:
        """The known beginning of a path as stretches of equal marks."""
        runs: list[tuple[Marks, int]] = []
        get, before, length = self._marks.get, None, 0
        for key in keys:
            marks = get(key)
            if marks is before and marks is not None:
                length += 1
                continue
            if before is not None:
                runs.append((before, length))
            if marks is None:
                return runs
            before, length = marks, 1
        if before is not None:
            runs.append((before, length))
        return runs

    def book(self, engine: EngineId, keys: Sequence[BlockKey], block_tokens: float) -> Lookup:
        """The prompt goes to `engine`. Returns what `settle` will need."""
        shelf = self._shelves[engine]
        told: list[tuple[int, int, int]] = []
        depth = 0
        for marks, length in self._runs(keys):
            generation = marks.get(shelf.number)
            if generation is None:
                break
            if generation != IN_USE:
                bin_, first = shelf.bin_of(generation), depth
                if told and told[-1][0] == bin_ and told[-1][2] == depth:
                    first = told.pop()[1]
                told.append((bin_, first, depth + length))
            depth += length
        if shelf.block_tokens is None:
            shelf.block_tokens = block_tokens
        shelf.block_tokens += (block_tokens - shelf.block_tokens) / 16
        for key in keys:
            uses = shelf.in_use.get(key, 0)
            if not uses and shelf.number in (marks_now := self._marks.get(key, {})):
                shelf.counts[marks_now[shelf.number] - shelf.first] -= 1
            shelf.in_use[key] = uses + 1
        self._mark(shelf, keys, IN_USE)
        self._age(shelf, len(keys))
        return Lookup(depth, bool(told) and told[0][:2] == (0, 0), tuple(told))

    def settle(
        self,
        engine: EngineId,
        prompt: Sequence[BlockKey],
        reply: Sequence[BlockKey],
        lookup: Lookup,
        cached_blocks: float | None,
    ) -> None:
        """The engine answered. `reply`: the keys that the answer added to the prompt's.

        `cached_blocks`: of the prompt, as many as it found, broken ones too; `inf` where it found all it could; None if
        it does not tell.
        """
        shelf = self._shelves.get(engine)
        if shelf is None:
            return
        if cached_blocks is not None and lookup.bins:
            shelf.curve.learn(
                [(b, min(1.0, max(0.0, (cached_blocks - start) / (end - start)))) for b, start, end in lookup.bins]
            )
            lost = lookup.recent and cached_blocks == 0
            shelf.losses = shelf.losses + 1 if lost else (0 if cached_blocks else shelf.losses)
        self._touch(shelf, [*self._let_go(shelf, prompt), *reply])
        if shelf.losses >= FLUSH_LOSSES:
            self.forget(engine)

    def retract(self, engine: EngineId, prompt: Sequence[BlockKey], lookup: Lookup) -> None:
        """The request ended before any sign of its prefill: what it alone would have brought is taken out."""
        shelf = self._shelves.get(engine)
        if shelf is None:
            return
        known = set(prompt[: lookup.blocks])
        free = self._let_go(shelf, prompt)
        self._touch(shelf, [key for key in free if key in known])
        self._unmark(shelf, [key for key in free if key not in known])

    # --- marks ------------------------------------------------------------------------------------------------------

    def _let_go(self, shelf: _Shelf, keys: Sequence[BlockKey]) -> list[BlockKey]:
        """One request less on each; those that none holds any more."""
        free = []
        for key in keys:
            uses = shelf.in_use.get(key, 0)
            if uses > 1:
                shelf.in_use[key] = uses - 1
            elif uses:
                del shelf.in_use[key]
                free.append(key)
        return free

    def _touch(self, shelf: _Shelf, keys: Sequence[BlockKey]) -> None:
        """The blocks, none of them in use but by what holds them longer, become the youngest."""
        keys = [key for key in keys if key not in shelf.in_use]
        generation = shelf.generation
        for key in keys:
            old = self._marks.get(key, {}).get(shelf.number)
            if old is not None and old != IN_USE:
                shelf.counts[old - shelf.first] -= 1
        shelf.lists[-1].extend(keys)
        shelf.counts[-1] += len(keys)
        self._mark(shelf, keys, generation)
        self._age(shelf, len(keys))

    def _mark(self, shelf: _Shelf, keys: Sequence[BlockKey], generation: int) -> None:
        made: dict[int, tuple[Marks | None, Marks]] = {}  # by identity of the old marks, which it keeps alive
        marks, number = self._marks, shelf.number
        for key in keys:
            old = marks.get(key)
            known = made.get(id(old))
            if known is None:
                known = made[id(old)] = old, {**(old or {}), number: generation}
            marks[key] = known[1]

    def _unmark(self, shelf: _Shelf, keys: Sequence[BlockKey]) -> None:
        made: dict[int, tuple[Marks, Marks]] = {}
        marks, number = self._marks, shelf.number
        for key in keys:
            old = marks.get(key)
            if old is None or number not in old:
                continue
            known = made.get(id(old))
            if known is None:
                known = made[id(old)] = old, {n: g for n, g in old.items() if n != number}
            if known[1]:
                marks[key] = known[1]
            else:
                del marks[key]

    def _age(self, shelf: _Shelf, touches: int) -> None:
        """So many blocks were touched: a new generation begins when it is due, and the oldest are dropped."""
        capacity = shelf.capacity_blocks()
        shelf.touched += touches
        if shelf.touched * GENERATIONS_IN_CAPACITY < capacity:
            return
        shelf.touched = 0
        shelf.lists.append([])
        shelf.counts.append(0)
        share = self._max_blocks // len(self._shelves)
        most = min(CAPACITIES * capacity, share)
        while len(shelf.lists) > 1 and (
            sum(shelf.counts) + len(shelf.in_use) > most or len(shelf.lists) > CAPACITIES * GENERATIONS_IN_CAPACITY
        ):
            self._drop_oldest(shelf)
        younger = float(len(shelf.in_use))
        shelf.ranks = [0.0] * len(shelf.counts)
        for place in range(len(shelf.counts) - 1, -1, -1):
            shelf.ranks[place] = (younger + shelf.counts[place] / 2) / capacity
            younger += shelf.counts[place]

    def _drop_oldest(self, shelf: _Shelf) -> None:
        number, oldest = shelf.number, shelf.first
        dead = [key for key in shelf.lists[0] if self._marks.get(key, {}).get(number) == oldest]
        self._unmark(shelf, dead)
        del shelf.lists[0], shelf.counts[0], shelf.ranks[:1]
        shelf.first += 1
