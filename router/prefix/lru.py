"""What each engine's prefix cache is believed to hold: one bounded index of block keys, an LRU order per engine.

    marks[key] = {engine: touch};  hit of engine i = longest run of blocks from the root with a mark of i.

One walk of the prompt answers for all engines (`paths`). A touch is a stretch of one prompt that was last used at one
time; an engine's touches, oldest first, are its LRU order. What is touched again leaves its touch behind, and a touch
that nothing is left of vanishes. So a prompt costs work for each stretch, and little for each block.

A block is put in at dispatch, so that a burst of equal prompts stays together, and touched again at completion, when
the engine itself lets go of it; tails age before roots, as in the engine. How much an engine really keeps is learned
from the `cached_tokens` it reports: the capacity shrinks where hits were promised in vain and grows where more was
found. A prediction that only a restart or a flush can have broken, broken twice in a row, clears the engine's part.

Memory: at most `max_blocks` (block, engine) pairs, shared evenly by the engines; about 150 bytes each in prompts of 8
blocks and more, and at most about 700 where each is a stretch of its own.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field

from router.prefix.block_map import BlockMap, Marks, Run
from router.prefix.observation import CacheObservation
from router.types import BlockKey, EngineId, PrefixExpectation

KNOWN_STEP, GUESSED_STEP = 0.02, 0.05  # one correction of the capacity, by whether the engine told its size
MOST_GROWTH, MOST_SHRINK = 4.0, 1 / 64  # bounds of the corrected capacity against the start
RECENT_SHARE = 0.25  # of the capacity, in blocks touched since: younger blocks are in the engine's cache for certain
FLUSH_LOSSES = 2
UNCONFIRMED = 0


SPARSE = 4  # a touch keeps at most so many keys for each that is left of it


@dataclass(slots=True)
class _Touch:
    """A stretch of a prompt, in its order. keys: those that are left of it, `left` of them, and some that are not."""

    keys: list[BlockKey]
    left: int
    confirmed: int
    """The part's clock when an answer last confirmed them."""


@dataclass(slots=True)
class _EnginePart:
    """One engine's part. `touches`: by serial number, least recently used first."""

    engine: EngineId
    number: int
    start_tokens: float = 0.0
    step: float = 0.0
    capacity_tokens: float = 0.0
    block_tokens: float | None = None  # mean size of an index block here
    touches: OrderedDict[int, _Touch] = field(default_factory=OrderedDict)
    serial: int = 0  # of the last touch
    blocks: int = 0  # left of all touches
    clock: int = UNCONFIRMED  # blocks touched so far
    losses: int = 0  # certain predictions lost in a row

    def confirmed(self, serial: int | None) -> int:
        """When a touch was last confirmed. There is none of that number where a path repeats a block: chained keys
        never do, and such blocks may be counted wrong."""
        touch = self.touches.get(serial or 0)
        return touch.confirmed if touch else UNCONFIRMED

    def leave(self, serial: int, blocks: int) -> None:
        """So many blocks of a touch are no longer of it."""
        touch = self.touches.get(serial)
        if touch is None:
            return
        blocks = min(blocks, touch.left)
        touch.left -= blocks
        self.blocks -= blocks
        if not touch.left:
            del self.touches[serial]


class LruIndex:
    """The index for engines that evict least recently used blocks first (a fair guess for other orders).

    An `EngineIndex`; `block_tokens` says how many tokens an index block holds, so that text of any density fits.
    """

    def __init__(self, block_map: BlockMap, max_blocks: int) -> None:
        self.max_blocks = max_blocks
        """Of all engines here together."""
        self._parts: dict[EngineId, _EnginePart] = {}
        self._numbered: dict[int, _EnginePart] = {}
        self._block_map = block_map

    def __len__(self) -> int:
        """(block, engine) pairs held."""
        return sum(part.blocks for part in self._parts.values())

    def __contains__(self, engine: EngineId) -> bool:
        return engine in self._parts

    @property
    def engines(self) -> int:
        return len(self._parts)

    def add(self, engine: EngineId, number: int, capacity_tokens: float, *, guessed: bool) -> None:
        """A new engine, or a known one that tells another size: what it held stays, its corrections start anew. number:
        the engine's in the block map."""
        part = self._parts.get(engine)
        if part is None:
            part = self._parts[engine] = self._numbered[number] = _EnginePart(engine, number)
        part.start_tokens = part.capacity_tokens = capacity_tokens
        part.step = GUESSED_STEP if guessed else KNOWN_STEP
        for each in self._parts.values():
            self._trim(each)

    def remove(self, engine: EngineId) -> None:
        self.forget(engine)
        del self._numbered[self._parts.pop(engine).number]

    def forget(self, engine: EngineId) -> None:
        part = self._parts[engine]
        for serial, touch in part.touches.items():
            self._block_map.take(self._block_map.held(touch.keys, part.number, serial), part.number)
        part.touches.clear()
        part.blocks = part.losses = 0

    def capacity_tokens(self, engine: EngineId) -> float:
        return self._parts[engine].capacity_tokens

    def blocks(self, engine: EngineId) -> int:
        return self._parts[engine].blocks

    def expect(self, runs: Sequence[Run]) -> dict[EngineId, float]:
        found: dict[EngineId, float] = {}
        if not (runs and self._parts):
            return found
        holding = runs[0][0].keys() & self._numbered.keys()
        depth = 0.0
        for marks, length in runs:
            for number in holding - marks.keys():
                holding.remove(number)
                found[self._numbered[number].engine] = depth
            if not holding:
                return found
            depth += length
        found.update((self._numbered[number].engine, depth) for number in holding)
        return found

    def book(
        self, engine: EngineId, keys: Sequence[BlockKey], runs: Sequence[Run], expected: float, block_tokens: float
    ) -> PrefixExpectation:
        part, matched = self._parts[engine], int(expected)
        last = self._block_map.marks(keys[matched - 1]).get(part.number) if matched else None
        confirmed = part.confirmed(last)
        recent = confirmed != UNCONFIRMED and part.clock - confirmed <= RECENT_SHARE * self._limit(part)
        self._touch(part, keys, runs, block_tokens, confirmed=False)
        return PrefixExpectation(matched, recent)

    def settle(self, engine: EngineId, observation: CacheObservation) -> None:
        part = self._parts.get(engine)
        if part is None:
            return
        expected_tokens, cached_tokens = observation.expected_tokens, observation.cached_tokens
        if cached_tokens is not None:
            self._correct(part, expected_tokens - cached_tokens, observation.slack_tokens)
            certain = observation.expectation.recent and expected_tokens > observation.slack_tokens
            lost = certain and cached_tokens == 0
            part.losses = part.losses + 1 if lost else (0 if cached_tokens else part.losses)
            if part.losses >= FLUSH_LOSSES:
                self.forget(engine)
        keys = (*observation.prompt, *observation.reply)
        self._touch(part, keys, self._block_map.walk(keys), observation.block_tokens, confirmed=True)

    def retract(self, engine: EngineId, keys: Sequence[BlockKey], expectation: PrefixExpectation) -> None:
        """Blocks that no answer ever confirmed are taken out."""
        part = self._parts.get(engine)
        if part is None:
            return
        rest, begin = keys[expectation.blocks :], 0
        for marks, length in self._block_map.walk(rest):
            serial = marks.get(part.number)
            if serial is not None and part.confirmed(serial) == UNCONFIRMED:
                part.leave(serial, length)
                self._block_map.take(rest[begin : begin + length], part.number)
            begin += length

    def _correct(self, part: _EnginePart, surplus_tokens: float, slack_tokens: float) -> None:
        if abs(surplus_tokens) <= slack_tokens:
            return
        factor = 1 - part.step if surplus_tokens > 0 else 1 + part.step
        low, high = part.start_tokens * MOST_SHRINK, part.start_tokens * MOST_GROWTH
        part.capacity_tokens = min(high, max(low, part.capacity_tokens * factor))

    def _touch(
        self, part: _EnginePart, keys: Sequence[BlockKey], runs: Sequence[Run], block_tokens: float, *, confirmed: bool
    ) -> None:
        """Make `keys` the most recently used, the root last: of one prompt the tail is forgotten first."""
        if part.block_tokens is None:
            part.block_tokens = block_tokens
        part.block_tokens += (block_tokens - part.block_tokens) / 16
        end, number = len(keys), part.number
        part.clock += end
        stretches: list[tuple[Marks, int, int, int]] = []  # old marks, confirmed, begin, end
        thinned: list[int] = []
        for marks, length in reversed(runs):
            begin, serial = end - length, marks.get(number)
            at = part.clock if confirmed else part.confirmed(serial)
            if serial is not None:
                part.leave(serial, length)
                thinned.append(serial)
            # One stretch with the one behind it, if other engines say the same of both.
            if stretches and at == stretches[-1][1] and {**marks, number: 0} == {**stretches[-1][0], number: 0}:
                stretches[-1] = marks, at, begin, stretches[-1][3]
            else:
                stretches.append((marks, at, begin, end))
            end = begin
        for marks, at, begin, end in stretches:
            stretch = list(keys[begin:end])
            part.serial += 1
            part.touches[part.serial] = _Touch(stretch, end - begin, at)
            part.blocks += end - begin
            self._block_map.put(stretch, marks, number, part.serial)
        self._thin(part, thinned)
        self._trim(part)

    def _thin(self, part: _EnginePart, serials: Sequence[int]) -> None:
        """Of touches that little is left of, keep no more."""
        for serial in serials:
            touch = part.touches.get(serial)
            if touch is not None and touch.left * SPARSE <= len(touch.keys):
                touch.keys = self._block_map.held(touch.keys, part.number, serial)

    def _limit(self, part: _EnginePart) -> int:
        """Most blocks of this engine: what its cache holds, but no more than its share of the index."""
        share = self.max_blocks // len(self._parts)
        return min(share, int(part.capacity_tokens / (part.block_tokens or 1.0)))

    def _trim(self, part: _EnginePart) -> None:
        """Forget the least recently used blocks beyond the limit."""
        limit = self._limit(part)
        while part.blocks > limit:
            serial, touch = next(iter(part.touches.items()))
            gone = self._block_map.drain(touch.keys, part.number, serial, part.blocks - limit)
            part.leave(serial, gone if touch.keys else touch.left)
