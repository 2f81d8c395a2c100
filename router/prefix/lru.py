"""What engines that evict by LRU are believed to hold: one bounded index of block keys, with an LRU order per engine.

    marks[key] = {number of engine i: serial number of a touch of engine i}
    hit of engine i = longest run of blocks from the root that have a mark of i

One walk of the prompt answers for all engines (`block_map`). A touch is a stretch of one prompt whose blocks were last
used together. An engine's touches, the oldest first, are its LRU order. Blocks that are used again move to a new touch,
and a touch that has no blocks left is deleted. So a prompt costs work for each stretch, and little for each block.

A prompt's blocks are put in at dispatch, so that a burst of equal prompts stays on one engine, and are touched again at
completion, which is when the engine releases them. The tail of a prompt ages before its root, as in the engine. How
much an engine really keeps is learned from the `cached_tokens` that it reports: its capacity shrinks when less was
found than expected, and grows when more was found. If hits that were certain are lost, which only a restart of the
engine explains (`restart_watch`), what it held before is forgotten.

Memory: at most `max_blocks` (block, engine) pairs, shared evenly by the engines. A pair takes about 150 bytes in
prompts of 8 blocks and more, and at most about 700 bytes if every block is a stretch of its own.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field

from router.prefix.block_map import BlockMap, Marks, Run
from router.prefix.observation import CacheObservation
from router.prefix.restart_watch import RestartWatch
from router.types import BlockKey, EngineId, PrefixExpectation, Telling

KNOWN_STEP, GUESSED_STEP = 0.02, 0.05
"""Relative size of one correction of the capacity, for an engine that told its size and for one that did not."""
MOST_GROWTH, MOST_SHRINK = 4.0, 1 / 64
"""Bounds of the corrected capacity, as factors on the capacity at the start."""
KNOWN_SHARE, GUESSED_SHARE = 1.0, 0.25
"""A block is certain to be in the engine's cache until this share of the capacity has been touched after it, each block
once when it is sent and once when it is answered; for an engine that told its size and for one that did not."""
CERTAIN = 0.95
"""The chance that such a block is cached."""
SURPLUS_BLOCKS = 512
"""The most blocks that one request makes the index forget besides twice its own, as that takes 0.4 us a block. More may
be due after a correction of the engine's capacity: the following requests go on."""
UNCONFIRMED = 0
SPARSE = 4
"""A touch whose blocks mostly moved on is compacted: it lists at most this many keys for each block left in it."""


@dataclass(slots=True)
class _Touch:
    """A stretch of a prompt. keys: the `left` blocks that are still in this touch, in the order of the prompt, and
    between them some that have moved to a later touch."""

    keys: list[BlockKey]
    left: int
    confirmed: int
    """`_EnginePart.clock` when an answer last confirmed these blocks; UNCONFIRMED if none did."""

    def is_end_of(self, path: Sequence[BlockKey]) -> bool:
        """Whether the blocks of this touch, all of which are still in it, are the last ones of that path."""
        return (
            self.left == len(self.keys) <= len(path)
            and self.keys[-1] == path[-1]
            and self.keys[0] == path[len(path) - self.left]
        )


@dataclass(slots=True)
class _EnginePart:
    """One engine's part of the index. `touches`: by serial number, the least recently used first."""

    engine: EngineId
    number: int  # in the block map
    start_tokens: float = 0.0  # the capacity before corrections
    step: float = 0.0  # relative size of a correction
    certain_share: float = GUESSED_SHARE
    capacity_tokens: float = 0.0
    block_tokens: float | None = None  # running mean of the size of an index block
    touches: OrderedDict[int, _Touch] = field(default_factory=OrderedDict)
    serial: int = 0  # of the newest touch
    blocks: int = 0  # left in all touches together
    clock: int = UNCONFIRMED  # blocks touched so far
    watch: RestartWatch = field(default_factory=RestartWatch)  # touches are serial numbers

    def confirmed(self, serial: int | None) -> int:
        """The clock when the touch `serial` was last confirmed. The touch may be missing, but only if a path repeats a
        block: chained keys never do so, and such blocks may be counted wrong."""
        touch = self.touches.get(serial or 0)
        return touch.confirmed if touch else UNCONFIRMED

    def shrink(self, serial: int, blocks: int) -> None:
        """This number of blocks has left the touch `serial`; an empty touch is deleted."""
        touch = self.touches.get(serial)
        if touch is None:
            return
        blocks = min(blocks, touch.left)
        touch.left -= blocks
        self.blocks -= blocks
        if not touch.left:
            del self.touches[serial]


class LruIndex:
    """The `EngineIndex` for engines that evict least recently used blocks first.

    An engine's capacity is in tokens and its part of the index is in blocks. `block_tokens`, which each request brings,
    converts one into the other, so that text with any number of tokens per byte fits.
    """

    def __init__(self, block_map: BlockMap, max_blocks: int) -> None:
        self.max_blocks = max_blocks
        """The most (block, engine) pairs of all engines of this index together."""
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
        """Add an engine, or take up another size of a known one: its blocks stay, and the corrections of its capacity
        start anew. number: of the engine in the block map. guessed: the engine did not tell its size."""
        part = self._parts.get(engine)
        if part is None:
            part = self._parts[engine] = self._numbered[number] = _EnginePart(engine, number)
        part.start_tokens = part.capacity_tokens = capacity_tokens
        part.step = GUESSED_STEP if guessed else KNOWN_STEP
        part.certain_share = GUESSED_SHARE if guessed else KNOWN_SHARE
        for each in self._parts.values():
            self._trim(each, each.blocks)

    def remove(self, engine: EngineId) -> None:
        self.forget(engine)
        del self._numbered[self._parts.pop(engine).number]

    def forget(self, engine: EngineId) -> None:
        part = self._parts[engine]
        for serial, touch in part.touches.items():
            self._block_map.take(self._block_map.held(touch.keys, part.number, serial), part.number)
        part.touches.clear()
        part.blocks = 0
        part.watch.clear()

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
        telling = self._telling(part, runs, matched)
        self._age(part, len(keys), block_tokens)
        held = sum([length for _, length in runs])
        serial = self._touch_new(part, keys[held:])
        self._touch(part, keys[:held], runs, confirmed=False)
        self._trim(part, SURPLUS_BLOCKS + 2 * len(keys))
        return PrefixExpectation(matched, telling, serial=serial)

    def _telling(self, part: _EnginePart, runs: Sequence[Run], matched: int) -> Telling | None:
        """The first block of the match that tells of a restart, if it is certain to be cached otherwise."""
        begin = 0
        for marks, length in runs:
            serial = marks.get(part.number)
            if begin >= matched or serial is None:
                return None
            if part.watch.tells(serial):
                confirmed = part.confirmed(serial)
                certain = confirmed != UNCONFIRMED and part.clock - confirmed <= part.certain_share * self._limit(part)
                return Telling(begin, CERTAIN, part.watch.number) if certain else None
            begin += length
        return None

    def settle(self, engine: EngineId, observation: CacheObservation) -> None:
        part = self._parts.get(engine)
        if part is None:
            return
        expected_tokens, cached_tokens = observation.expected_tokens, observation.cached_tokens
        if cached_tokens is not None:
            self._correct(part, expected_tokens - cached_tokens, observation.slack_tokens)
            if part.watch.judge(observation, observation.expectation.serial - 1):
                self._forget_old(part)
        self._age(part, len(observation.prompt) + len(observation.reply), observation.block_tokens)
        end = part.touches.get(observation.expectation.serial)
        if end is None or not end.is_end_of(observation.prompt):
            self._confirm(part, (*observation.prompt, *observation.reply))
        else:  # nobody has touched the prompt's new blocks since they were booked, so no look-up is needed
            self._confirm(part, observation.reply)
            end.confirmed = part.clock
            part.touches.move_to_end(observation.expectation.serial)
            self._confirm(part, observation.prompt[: -end.left])
        self._trim(part, SURPLUS_BLOCKS + 2 * (len(observation.prompt) + len(observation.reply)))

    def retract(self, engine: EngineId, keys: Sequence[BlockKey], expectation: PrefixExpectation) -> None:
        """Removes the blocks that no answer ever confirmed."""
        part = self._parts.get(engine)
        if part is None:
            return
        rest, begin = keys[expectation.blocks :], 0
        for marks, length in self._block_map.walk(rest):
            serial = marks.get(part.number)
            if serial is not None and part.confirmed(serial) == UNCONFIRMED:
                part.shrink(serial, length)
                self._block_map.take(rest[begin : begin + length], part.number)
            begin += length

    def _forget_old(self, part: _EnginePart) -> None:
        """The engine has restarted: forget what was touched last before the first loss."""
        for serial in [serial for serial in part.touches if part.watch.tells(serial)]:
            touch = part.touches.pop(serial)
            self._block_map.take(self._block_map.held(touch.keys, part.number, serial), part.number)
            part.blocks -= touch.left
        part.watch.clear()

    def _correct(self, part: _EnginePart, surplus_tokens: float, slack_tokens: float) -> None:
        """Correct the capacity by one step. surplus_tokens: expected less cached tokens."""
        if abs(surplus_tokens) <= slack_tokens:
            return
        factor = 1 - part.step if surplus_tokens > 0 else 1 + part.step
        low, high = part.start_tokens * MOST_SHRINK, part.start_tokens * MOST_GROWTH
        part.capacity_tokens = min(high, max(low, part.capacity_tokens * factor))

    def _age(self, part: _EnginePart, touched: int, block_tokens: float) -> None:
        """This number of blocks, of this size, is being touched."""
        if part.block_tokens is None:
            part.block_tokens = block_tokens
        part.block_tokens += (block_tokens - part.block_tokens) / 16
        part.clock += touched

    def _confirm(self, part: _EnginePart, keys: Sequence[BlockKey]) -> None:
        self._touch(part, keys, self._block_map.walk(keys), confirmed=True)

    def _touch_new(self, part: _EnginePart, keys: Sequence[BlockKey]) -> int:
        """As `_touch`, unconfirmed, for the end of a path, which probably no engine holds. Returns the serial number of
        the touch of those blocks that indeed no engine held."""
        part.serial += 1
        serial = part.serial
        claimed = self._block_map.claim(keys, part.number, serial)
        if claimed < len(keys):
            rest = keys[claimed:]
            self._touch(part, rest, self._block_map.walk(rest), confirmed=False)
        if claimed:
            part.touches[serial] = _Touch(list(keys[:claimed]), claimed, UNCONFIRMED)
            part.blocks += claimed
        return serial

    def _touch(self, part: _EnginePart, keys: Sequence[BlockKey], runs: Sequence[Run], *, confirmed: bool) -> None:
        """Make `keys` the most recently used blocks. The root becomes the most recent, so the tail is forgotten
        first."""
        end, number = len(keys), part.number
        stretches: list[tuple[Marks, int, int, int]] = []  # old marks, confirmed at, begin, end
        shrunk: list[int] = []  # serials of touches
        for marks, length in reversed(runs):
            begin, serial = end - length, marks.get(number)
            confirmed_at = part.clock if confirmed else part.confirmed(serial)
            if serial is not None:
                part.shrink(serial, length)
                shrunk.append(serial)
            # The run joins the stretch behind it if all other engines have the same marks on both.
            if (
                stretches
                and confirmed_at == stretches[-1][1]
                and {**marks, number: 0} == {**stretches[-1][0], number: 0}
            ):
                stretches[-1] = marks, confirmed_at, begin, stretches[-1][3]
            else:
                stretches.append((marks, confirmed_at, begin, end))
            end = begin
        for marks, confirmed_at, begin, end in stretches:
            stretch = list(keys[begin:end])
            part.serial += 1
            part.touches[part.serial] = _Touch(stretch, end - begin, confirmed_at)
            part.blocks += end - begin
            self._block_map.put(stretch, marks, number, part.serial)
        self._compact(part, shrunk)

    def _compact(self, part: _EnginePart, serials: Sequence[int]) -> None:
        """Drop the keys that have moved on from those touches that have few blocks left."""
        for serial in serials:
            touch = part.touches.get(serial)
            if touch is not None and touch.left * SPARSE <= len(touch.keys):
                touch.keys = self._block_map.held(touch.keys, part.number, serial)

    def _limit(self, part: _EnginePart) -> int:
        """The most blocks to keep for this engine: what its cache can hold, but no more than its share of the index."""
        share = self.max_blocks // len(self._parts)
        return min(share, int(part.capacity_tokens / (part.block_tokens or 1.0)))

    def _trim(self, part: _EnginePart, most: int) -> None:
        """Forget the least recently used blocks beyond the limit, but no more than `most`: the next request goes on."""
        limit = max(self._limit(part), part.blocks - most)
        while part.blocks > limit:
            serial, touch = next(iter(part.touches.items()))
            removed = self._block_map.drain(touch.keys, part.number, serial, part.blocks - limit)
            part.shrink(serial, removed if touch.keys else touch.left)
