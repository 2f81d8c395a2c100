"""What an engine with a learned or randomized eviction order is believed to hold: how likely a block survives, by age.

For each engine, a block's age is its *rank*: how many index blocks were touched after it, over the engine's capacity.
The chance that it is still cached is a curve over 16 bins of rank, learned from the `cached_tokens` that answers
report; engines of one eviction order share a curve. Along a prompt a block survives at most as well as its parent,
and blocks of unfinished requests are certain, so the expected prefix of a prompt on an engine is

    hit = sum over blocks of p_k,   p_k = 1 if in use there, else min(p_(k-1), S[bin(rank_k)])

until the first block that the engine was never sent. Nothing is assumed of the order but that age tells something; an
index that evicts by LRU (`prefix`) is wrong about engines that keep old prefixes and drop young tails.

Ages are counted in generations, sixteen to a capacity; an engine's mark (`paths`) of a block is the generation, or how
many unfinished requests hold it. So one walk answers for all engines: a dictionary look-up a block, and work for each
engine only where the marks change.

Memory: at most `max_blocks` (block, engine) pairs, shared evenly by the engines, and no more than 8 capacities each.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from router.prefix.block_map import BlockMap, Run
from router.prefix.observation import CacheObservation
from router.prefix.recency import IN_USE, EngineRecency
from router.prefix.survival_curve import SurvivalCurve
from router.types import BlockKey, EngineId, PrefixExpectation

CAPACITIES = 8
FEW = 64  # entries of a list that are not worth going through
FLUSH_LOSSES = 2
"""Certain hits that must be lost in a row before the engine counts as flushed."""


class SurvivalIndex:
    """The index for engines that do not evict by LRU: an `EngineIndex`."""

    def __init__(self, block_map: BlockMap, max_blocks: int) -> None:
        self.max_blocks = max_blocks
        """Of all engines here together."""
        self._parts: dict[EngineId, EngineRecency] = {}
        self._numbered: dict[int, EngineRecency] = {}
        self._block_map = block_map
        self.curves: dict[str, SurvivalCurve] = {}  # by order

    def __len__(self) -> int:
        """(block, engine) pairs held."""
        return sum(self.blocks(engine) for engine in self._parts)

    def __contains__(self, engine: EngineId) -> bool:
        return engine in self._parts

    @property
    def engines(self) -> int:
        return len(self._parts)

    def add(self, engine: EngineId, number: int, capacity_tokens: float, order: str) -> None:
        """A new engine under that order, or a known one that tells another size: what it held stays. number: the
        engine's in the block map."""
        part = self._parts.get(engine)
        curve = self.curves.setdefault(order, SurvivalCurve())
        if part is None:
            self._parts[engine] = self._numbered[number] = EngineRecency(engine, number, curve, capacity_tokens)
        else:
            part.capacity_tokens, part.curve = capacity_tokens, curve
            part.since = part.touched / part.capacity_blocks()

    def remove(self, engine: EngineId) -> None:
        self.forget(engine)
        del self._numbered[self._parts.pop(engine).number]

    def forget(self, engine: EngineId) -> None:
        part = self._parts[engine]
        for keys in (*part.lists, *part.open.values()):
            self._block_map.take(keys, part.number)
        part.clear()

    def blocks(self, engine: EngineId) -> int:
        return self._parts[engine].blocks()

    def capacity_tokens(self, engine: EngineId) -> float:
        return self._parts[engine].capacity_tokens

    def expect(self, runs: Sequence[Run]) -> dict[EngineId, float]:
        found: dict[EngineId, float] = {}
        if not (runs and self._parts):
            return found
        hopes = dict.fromkeys(runs[0][0].keys() & self._numbered.keys(), (1.0, 0.0))  # number -> p, sum of p
        for marks, length in runs:
            still: dict[int, tuple[float, float]] = {}
            for number, (p, expected) in hopes.items():
                generation = marks.get(number)
                if generation is None:
                    found[self._numbered[number].engine] = expected
                elif generation >= IN_USE:
                    still[number] = p, expected + length
                else:
                    part = self._numbered[number]
                    p = min(p, part.curve.chance[part.bin_of(generation)])
                    still[number] = p, expected + p * length
            hopes = still
            if not hopes:
                break
        found.update((self._numbered[number].engine, expected) for number, (_, expected) in hopes.items())
        return found

    def book(
        self,
        engine: EngineId,
        keys: Sequence[BlockKey],
        runs: Sequence[Run],
        expected: float,  # noqa: ARG002 -- the expectation is told by bins
        block_tokens: float,
    ) -> PrefixExpectation:
        part = self._parts[engine]
        depth, told = self._tell(part, runs)
        part.learn_size(block_tokens)
        end = 0
        for marks, length in runs:
            begin, end = end, end + length
            mark = marks.get(part.number, 0)
            if mark < IN_USE:
                if part.number in marks:
                    part.take(mark, length)
                part.held += length
                mark = IN_USE
            self._block_map.put(keys[begin:end], marks, part.number, mark + 1)
        self._age(part, len(keys))
        part.serial += 1
        part.open[part.serial] = keys
        return PrefixExpectation(depth, bool(told) and told[0][:2] == (0, 0), tuple(told), part.serial)

    def _tell(self, part: EngineRecency, runs: Sequence[Run]) -> tuple[int, list[tuple[int, int, int]]]:
        """(blocks of the path that were sent there, those of them that are not in use as stretches of one bin)."""
        told: list[tuple[int, int, int]] = []
        depth = 0
        for marks, length in runs:
            generation = marks.get(part.number)
            if generation is None:
                break
            if generation < IN_USE:
                bin_, first = part.bin_of(generation), depth
                if told and told[-1][0] == bin_ and told[-1][2] == depth:
                    first = told.pop()[1]
                told.append((bin_, first, depth + length))
            depth += length
        return depth, told

    def settle(self, engine: EngineId, observation: CacheObservation) -> None:
        part, expectation = self._parts.get(engine), observation.expectation
        if part is None:
            return
        cached_blocks = _cached_blocks(observation)
        if cached_blocks is not None and expectation.bins:
            part.curve.learn(
                [(b, min(1.0, max(0.0, (cached_blocks - start) / (end - start)))) for b, start, end in expectation.bins]
            )
            lost = expectation.recent and cached_blocks == 0
            part.losses = part.losses + 1 if lost else (0 if cached_blocks else part.losses)
        free = self._let_go(part, expectation, part.generation)
        part.join(free)
        self._age(part, len(free) + self._touch(part, observation.reply))
        if part.losses >= FLUSH_LOSSES:
            self.forget(engine)

    def retract(
        self,
        engine: EngineId,
        keys: Sequence[BlockKey],  # noqa: ARG002 -- kept here since `book`
        expectation: PrefixExpectation,
    ) -> None:
        part = self._parts.get(engine)
        if part is None:
            return
        known = set(part.open.get(expectation.serial, ())[: expectation.blocks])
        free = self._let_go(part, expectation, IN_USE)
        self._age(part, self._touch(part, [key for key in free if key in known]))
        self._block_map.take([key for key in free if key not in known], part.number)

    # --- marks ------------------------------------------------------------------------------------------------------

    def _let_go(self, part: EngineRecency, expectation: PrefixExpectation, free_mark: int) -> list[BlockKey]:
        """The request holds its blocks no more; those that none holds any more, which get that mark."""
        keys = part.open.pop(expectation.serial, ())  # none: the engine was forgotten in between
        free: list[BlockKey] = []
        end = 0
        for marks, length in self._block_map.walk(keys):
            begin, end = end, end + length
            mark = marks[part.number] - 1
            if mark == IN_USE:
                free += keys[begin:end]
                mark = free_mark
            self._block_map.put(keys[begin:end], marks, part.number, mark)
        part.held -= len(free)
        return free

    def _touch(self, part: EngineRecency, keys: Sequence[BlockKey]) -> int:
        """The blocks become the youngest, but for those that a request holds. Returns how many that are."""
        generation, touched, end = part.generation, 0, 0
        for marks, length in self._block_map.walk(keys):
            begin, end = end, end + length
            mark = marks.get(part.number, IN_USE)
            if mark > IN_USE:
                continue
            if mark < IN_USE:
                part.take(mark, length)
            stretch = keys[begin:end]
            part.join(stretch)
            touched += length
            self._block_map.put(stretch, marks, part.number, generation)
        return touched

    def _age(self, part: EngineRecency, touches: int) -> None:
        """So many blocks were touched. When that begins a new generation, the oldest blocks may be too many."""
        share = self.max_blocks // len(self._parts)
        if not part.age(touches, share):
            return
        if len(part.lists[0]) > 2 * part.counts[0] + FEW:
            part.lists[0] = [key for key in dict.fromkeys(part.lists[0]) if self._is_oldest(part, key)]
        self._shrink(part, min(CAPACITIES * part.capacity_blocks(), share))
        part.rank()

    def _shrink(self, part: EngineRecency, most: float) -> None:
        """The oldest blocks are dropped until there are so many."""
        surplus = math.ceil(part.blocks() - most)
        while surplus > 0 and len(part.lists) > 1:
            dead: dict[BlockKey, None] = {}
            looked_at = 0
            for looked_at, key in enumerate(part.lists[0], 1):  # noqa: B007 -- read behind the loop
                if self._is_oldest(part, key):
                    dead[key] = None
                    if len(dead) == surplus:
                        break
            self._block_map.take(dead, part.number)
            surplus -= len(dead)
            part.drop(looked_at, len(dead))

    def _is_oldest(self, part: EngineRecency, key: BlockKey) -> bool:
        return self._block_map.marks(key).get(part.number, IN_USE) <= part.first


def _cached_blocks(observation: CacheObservation) -> float | None:
    """Index blocks of the prompt that the engine found, broken ones too: `inf` where it found all it could; None if it
    does not tell."""
    cached_tokens = observation.cached_tokens
    if cached_tokens is None:
        return None
    if cached_tokens + observation.slack_tokens >= observation.prompt_tokens:
        return math.inf
    return cached_tokens / (observation.block_tokens * observation.token_ratio)
