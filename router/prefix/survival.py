"""What engines with a learned or randomized eviction order are believed to hold: how likely each block survives.

On each engine a block has an age, its *rank*: how many index blocks were touched after it, divided by the engine's
capacity. The chance that a block is still cached is a curve S over 16 bins of rank (`survival_curve`). It is learned
from the `cached_tokens` that answers report, and engines of one eviction order share it. Along a prompt a block
survives at most as well as its parent, and the blocks of unfinished requests are cached for certain. So the expected
hit of a prompt on an engine, in index blocks, is

    hit = sum over blocks k of p_k,   p_k = 1 if block k is in use there, else min(p_(k-1), S[bin(rank_k)])

up to the first block that the engine was never sent. (A request holds its prompt from the root on, so blocks in use
come before all others.) The only assumption about the eviction order is that the age of a block says something about
its survival. The LRU index (`lru`) would be wrong about engines that keep old prefixes and drop young tails.

Ages are counted in generations, sixteen to a capacity (`recency`). An engine's mark of a block in the block map is the
generation of its last touch, or IN_USE plus the number of unfinished requests that hold it. So one walk answers for all
engines: it costs a dictionary look-up for each block, and work for each engine only where the marks change.

Memory: at most `max_blocks` (block, engine) pairs, shared evenly by the engines, and at most 8 capacities for each.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import islice

from router.prefix.block_map import BlockMap, Run
from router.prefix.observation import CacheObservation
from router.prefix.recency import IN_USE, EngineRecency
from router.prefix.survival_curve import SurvivalCurve
from router.types import BlockKey, EngineId, PrefixExpectation, Telling

CAPACITIES = 8
"""The most blocks that are kept for an engine, in units of its capacity."""
FEW_ENTRIES = 64
"""Outdated entries of a list that are not worth a search."""
SURPLUS_BLOCKS = 512
"""The most blocks that one request makes the index drop besides twice its own, as that takes 0.5 us a block."""
MOST_LOOKED_AT = 4
"""The most entries that are looked at for a block to drop."""


class SurvivalIndex:
    """The `EngineIndex` for engines that do not evict by LRU."""

    def __init__(self, block_map: BlockMap, max_blocks: int) -> None:
        self.max_blocks = max_blocks
        """The most (block, engine) pairs of all engines of this index together."""
        self._parts: dict[EngineId, EngineRecency] = {}
        self._numbered: dict[int, EngineRecency] = {}
        self._block_map = block_map
        self.curves: dict[str, SurvivalCurve] = {}  # by eviction order

    def __len__(self) -> int:
        """(block, engine) pairs held."""
        return sum(self.blocks(engine) for engine in self._parts)

    def __contains__(self, engine: EngineId) -> bool:
        return engine in self._parts

    @property
    def engines(self) -> int:
        return len(self._parts)

    def add(self, engine: EngineId, number: int, capacity_tokens: float, order: str) -> None:
        """Add an engine, or take up another size or order of a known one, whose blocks stay. number: of the engine in
        the block map."""
        part = self._parts.get(engine)
        curve = self.curves.setdefault(order, SurvivalCurve())
        if part is None:
            self._parts[engine] = self._numbered[number] = EngineRecency(engine, number, curve, capacity_tokens)
        else:
            part.capacity_tokens, part.curve = capacity_tokens, curve
            part.touched_capacities = part.touched / part.capacity_blocks()

    def remove(self, engine: EngineId) -> None:
        self.forget(engine)
        del self._numbered[self._parts.pop(engine).number]

    def forget(self, engine: EngineId) -> None:
        part = self._parts[engine]
        for keys in (*part.lists, *part.unfinished.values()):
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
        # The engines that were sent every block so far, by number: (p of the last block, sum of p).
        holding = dict.fromkeys(runs[0][0].keys() & self._numbered.keys(), (1.0, 0.0))
        for marks, length in runs:
            holding_next: dict[int, tuple[float, float]] = {}
            for number, (p, expected) in holding.items():
                generation = marks.get(number)
                if generation is None:
                    found[self._numbered[number].engine] = expected
                elif generation >= IN_USE:
                    holding_next[number] = p, expected + length
                else:
                    part = self._numbered[number]
                    p = min(p, part.curve.chance[part.bin_of(generation)])
                    holding_next[number] = p, expected + p * length
            holding = holding_next
            if not holding:
                break
        found.update((self._numbered[number].engine, expected) for number, (_, expected) in holding.items())
        return found

    def book(
        self,
        engine: EngineId,
        keys: Sequence[BlockKey],
        runs: Sequence[Run],
        expected: float,  # noqa: ARG002 -- the expectation is kept by bins
        block_tokens: float,
    ) -> PrefixExpectation:
        part = self._parts[engine]
        depth, bins, telling = self._bins_along(part, runs)
        part.learn_size(block_tokens)
        held = self._hold(part, keys, runs)
        new = keys[held:]  # probably no engine holds these
        claimed = self._block_map.claim(new, part.number, IN_USE + 1)
        part.in_use += claimed
        if claimed < len(new):
            self._hold(part, new[claimed:], self._block_map.walk(new[claimed:]))
        self._age(part, len(keys))
        part.serial += 1
        part.unfinished[part.serial] = keys
        return PrefixExpectation(depth, telling, tuple(bins), part.serial)

    def _bins_along(
        self, part: EngineRecency, runs: Sequence[Run]
    ) -> tuple[int, list[tuple[int, int, int]], Telling | None]:
        """The blocks from the root that the engine was sent: (their number, those of them that are not in use as
        stretches of one bin each: bin, first block, block after the last; the one that tells of a restart)."""
        bins: list[tuple[int, int, int]] = []
        depth, telling, watch = 0, None, part.watch
        for marks, length in runs:
            generation = marks.get(part.number)
            if generation is None:
                break
            if generation < IN_USE:
                bin_, first = part.bin_of(generation), depth
                if telling is None and watch.tells(generation) and (depth == 0 or watch.since is not None):
                    telling = Telling(depth, part.curve.surely(bin_), watch.number)
                if bins and bins[-1][0] == bin_ and bins[-1][2] == depth:
                    first = bins.pop()[1]
                bins.append((bin_, first, depth + length))
            depth += length
        return depth, bins, telling

    def settle(self, engine: EngineId, observation: CacheObservation) -> None:
        part, expectation = self._parts.get(engine), observation.expectation
        if part is None:
            return
        cached_blocks = _cached_blocks(observation)
        if cached_blocks is not None and expectation.bins:
            part.curve.learn(
                [(b, min(1.0, max(0.0, (cached_blocks - start) / (end - start)))) for b, start, end in expectation.bins]
            )
        self._judge(part, observation)
        free = self._release(part, expectation, part.generation)
        part.join(free)
        self._age(part, len(free) + self._touch(part, observation.reply))

    def _judge(self, part: EngineRecency, observation: CacheObservation) -> None:
        """Look whether the engine has restarted, and forget then what was touched last before the first loss."""
        suspected = part.watch.since is not None
        restarted = part.watch.judge(observation, part.generation)
        if part.watch.since is not None and not suspected:
            part.begin_generation()  # what is touched from now on is told apart
            part.rank()
        if restarted:
            keys = part.forget_until(part.watch.since or 0)
            old = [key for key in keys if part.watch.tells(self._block_map.marks(key).get(part.number, IN_USE))]
            self._block_map.take(old, part.number)
            part.rank()
            part.watch.clear()

    def retract(
        self,
        engine: EngineId,
        keys: Sequence[BlockKey],  # noqa: ARG002 -- kept here since `book`
        expectation: PrefixExpectation,
    ) -> None:
        part = self._parts.get(engine)
        if part is None:
            return
        known = set(part.unfinished.get(expectation.serial, ())[: expectation.blocks])
        free = self._release(part, expectation, IN_USE)
        self._age(part, self._touch(part, [key for key in free if key in known]))
        self._block_map.take([key for key in free if key not in known], part.number)

    # --- marks ------------------------------------------------------------------------------------------------------

    def _hold(self, part: EngineRecency, keys: Sequence[BlockKey], runs: Sequence[Run]) -> int:
        """One more request holds the blocks of these runs, with which `keys` begins. Returns the number of blocks."""
        end = 0
        for marks, length in runs:
            begin, end = end, end + length
            mark = marks.get(part.number, 0)
            if mark < IN_USE:
                if part.number in marks:
                    part.uncount(mark, length)
                part.in_use += length
                mark = IN_USE
            self._block_map.put(keys[begin:end], marks, part.number, mark + 1)
        return end

    def _release(self, part: EngineRecency, expectation: PrefixExpectation, free_mark: int) -> list[BlockKey]:
        """The request no longer holds its blocks. Returns those that no other request holds either; they are marked
        with `free_mark`."""
        keys = part.unfinished.pop(expectation.serial, ())  # missing if the engine was forgotten in between
        free: list[BlockKey] = []
        end = 0
        for marks, length in self._block_map.walk(keys):
            begin, end = end, end + length
            mark = marks[part.number] - 1
            if mark == IN_USE:
                free += keys[begin:end]
                mark = free_mark
            self._block_map.put(keys[begin:end], marks, part.number, mark)
        part.in_use -= len(free)
        return free

    def _touch(self, part: EngineRecency, keys: Sequence[BlockKey]) -> int:
        """Make the blocks the youngest ones; those that a request holds stay as they are. Returns how many were made
        so."""
        generation, touched, end = part.generation, 0, 0
        for marks, length in self._block_map.walk(keys):
            begin, end = end, end + length
            mark = marks.get(part.number, IN_USE)
            if mark > IN_USE:
                continue
            if mark < IN_USE:
                part.uncount(mark, length)
            stretch = keys[begin:end]
            part.join(stretch)
            touched += length
            self._block_map.put(stretch, marks, part.number, generation)
        return touched

    def _age(self, part: EngineRecency, touches: int) -> None:
        """This number of blocks was touched. If that begins a new generation, the blocks beyond the limits are to be
        dropped: some of them now, and the others by the following requests."""
        share = self.max_blocks // len(self._parts)
        begins = part.age(touches, share)
        if begins:
            if len(part.lists[0]) > 2 * part.counts[0] + FEW_ENTRIES:
                part.lists[0] = [key for key in dict.fromkeys(part.lists[0]) if self._is_oldest(part, key)]
            limit = min(CAPACITIES * part.capacity_blocks(), share)
            part.surplus = max(0, math.ceil(part.blocks() - limit))
        if part.surplus:
            part.surplus -= self._shrink(part, min(part.surplus, SURPLUS_BLOCKS + 2 * touches))
        if begins:
            part.rank()

    def _shrink(self, part: EngineRecency, most: int) -> int:
        """Drop at most so many of the oldest blocks. Returns how many were dropped: fewer if there are no more, or if
        many outdated entries lie between them."""
        dropped, looking = 0, MOST_LOOKED_AT * most
        while dropped < most and looking > 0 and len(part.lists) > 1:
            oldest: dict[BlockKey, None] = {}
            looked_at = 0
            for looked_at, key in enumerate(islice(part.lists[0], looking), 1):  # noqa: B007 -- read after the loop
                if self._is_oldest(part, key):
                    oldest[key] = None
                    if len(oldest) == most - dropped:
                        break
            self._block_map.take(oldest, part.number)
            dropped += len(oldest)
            looking -= max(1, looked_at)
            part.drop(looked_at, len(oldest))
        return dropped

    def _is_oldest(self, part: EngineRecency, key: BlockKey) -> bool:
        """Whether the key counts in the oldest list: it was not touched again, and no request holds it."""
        return self._block_map.marks(key).get(part.number, IN_USE) <= part.first


def _cached_blocks(observation: CacheObservation) -> float | None:
    """Index blocks of the prompt that the engine found in its cache, as a fraction if the last one was found in part;
    `inf` if the engine found all that it can; None if it did not report the hit."""
    cached_tokens = observation.cached_tokens
    if cached_tokens is None:
        return None
    if cached_tokens + observation.slack_tokens >= observation.prompt_tokens:
        return math.inf
    return cached_tokens / (observation.block_tokens * observation.token_ratio)
