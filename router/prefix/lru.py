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

from router.prefix.block_map import Marks, Paths, Run
from router.types import BlockKey, EngineId, Lookup

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
    """The shelf's clock when an answer last confirmed them."""


@dataclass(slots=True)
class _Shelf:
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


class PrefixIndex:
    """The index for engines that evict least recently used blocks first (a fair guess for other orders).

    Lengths are index blocks; `block_tokens` says how many tokens one holds, so that text of any density fits.
    Engines that are not (any more) known are ignored by the verbs of a request's end.
    """

    def __init__(self, max_blocks: int) -> None:
        self.max_blocks = max_blocks
        """Of all engines here together."""
        self._shelves: dict[EngineId, _Shelf] = {}
        self._numbered: dict[int, _Shelf] = {}
        self._paths = Paths()

    def __len__(self) -> int:
        """(block, engine) pairs held."""
        return sum(shelf.blocks for shelf in self._shelves.values())

    def __contains__(self, engine: EngineId) -> bool:
        return engine in self._shelves

    @property
    def engines(self) -> int:
        return len(self._shelves)

    def add(self, engine: EngineId, capacity_tokens: float, *, guessed: bool) -> None:
        """A new engine, or a known one that tells another size: what it held stays, its corrections start anew."""
        shelf = self._shelves.get(engine)
        if shelf is None:
            number = next(n for n in range(len(self._shelves) + 1) if n not in self._numbered)
            shelf = self._shelves[engine] = self._numbered[number] = _Shelf(engine, number)
        shelf.start_tokens = shelf.capacity_tokens = capacity_tokens
        shelf.step = GUESSED_STEP if guessed else KNOWN_STEP
        for each in self._shelves.values():
            self._trim(each)

    def remove(self, engine: EngineId) -> None:
        self.forget(engine)
        del self._numbered[self._shelves.pop(engine).number]

    def forget(self, engine: EngineId) -> None:
        """The engine's cache is empty, as after a restart."""
        shelf = self._shelves[engine]
        for serial, touch in shelf.touches.items():
            self._paths.take(self._paths.held(touch.keys, shelf.number, serial), shelf.number)
        shelf.touches.clear()
        shelf.blocks = shelf.losses = 0

    def capacity_tokens(self, engine: EngineId) -> float:
        """The engine's cache as corrected by what was observed."""
        return self._shelves[engine].capacity_tokens

    def blocks(self, engine: EngineId) -> int:
        return self._shelves[engine].blocks

    def walk(self, keys: Sequence[BlockKey]) -> list[Run]:
        """For `expect` and `book`."""
        return self._paths.walk(keys) if self._shelves else []

    def match(self, keys: Sequence[BlockKey]) -> dict[EngineId, int]:
        """Blocks of the prompt that each engine is believed to hold; engines with none are left out."""
        return self.expect(self.walk(keys))

    def expect(self, runs: Sequence[Run]) -> dict[EngineId, int]:
        """`match` of a path walked just now."""
        found: dict[EngineId, int] = {}
        holding = set(runs[0][0]) if runs else set()
        depth = 0
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
        self, engine: EngineId, keys: Sequence[BlockKey], runs: Sequence[Run], matched: int, block_tokens: float
    ) -> Lookup:
        """The prompt goes to `engine`, of which `expect` gave `matched` blocks; runs: its walk, just now. Returns what
        `settle` will need."""
        shelf = self._shelves[engine]
        last = self._paths.marks(keys[matched - 1]).get(shelf.number) if matched else None
        confirmed = shelf.confirmed(last)
        recent = confirmed != UNCONFIRMED and shelf.clock - confirmed <= RECENT_SHARE * self._limit(shelf)
        self._touch(shelf, keys, runs, block_tokens, confirmed=False)
        return Lookup(matched, recent)

    def settle(
        self,
        engine: EngineId,
        keys: Sequence[BlockKey],
        lookup: Lookup,
        *,
        block_tokens: float,
        slack_tokens: float,
        predicted_tokens: float,
        cached_tokens: int | None,
    ) -> None:
        """The engine answered. keys: prompt and reply; cached_tokens: what it found, None if it does not tell.

        slack_tokens: one block, the difference that says nothing (index and engine cut the prompt differently).
        """
        shelf = self._shelves.get(engine)
        if shelf is None:
            return
        if cached_tokens is not None:
            self._correct(shelf, predicted_tokens - cached_tokens, slack_tokens)
            lost = lookup.recent and predicted_tokens > slack_tokens and cached_tokens == 0
            shelf.losses = shelf.losses + 1 if lost else (0 if cached_tokens else shelf.losses)
            if shelf.losses >= FLUSH_LOSSES:
                self.forget(engine)
        self._touch(shelf, keys, self._paths.walk(keys), block_tokens, confirmed=True)

    def retract(self, engine: EngineId, keys: Sequence[BlockKey], lookup: Lookup) -> None:
        """The request ended before any sign of its prefill: blocks that no answer ever confirmed are taken out."""
        shelf = self._shelves.get(engine)
        if shelf is None:
            return
        rest, begin = keys[lookup.blocks :], 0
        for marks, length in self._paths.walk(rest):
            serial = marks.get(shelf.number)
            if serial is not None and shelf.confirmed(serial) == UNCONFIRMED:
                shelf.leave(serial, length)
                self._paths.take(rest[begin : begin + length], shelf.number)
            begin += length

    def _correct(self, shelf: _Shelf, surplus_tokens: float, slack_tokens: float) -> None:
        if abs(surplus_tokens) <= slack_tokens:
            return
        factor = 1 - shelf.step if surplus_tokens > 0 else 1 + shelf.step
        low, high = shelf.start_tokens * MOST_SHRINK, shelf.start_tokens * MOST_GROWTH
        shelf.capacity_tokens = min(high, max(low, shelf.capacity_tokens * factor))

    def _touch(
        self, shelf: _Shelf, keys: Sequence[BlockKey], runs: Sequence[Run], block_tokens: float, *, confirmed: bool
    ) -> None:
        """Make `keys` the most recently used, the root last: of one prompt the tail is forgotten first."""
        if shelf.block_tokens is None:
            shelf.block_tokens = block_tokens
        shelf.block_tokens += (block_tokens - shelf.block_tokens) / 16
        end, number = len(keys), shelf.number
        shelf.clock += end
        stretches: list[tuple[Marks, int, int, int]] = []  # old marks, confirmed, begin, end
        thinned: list[int] = []
        for marks, length in reversed(runs):
            begin, serial = end - length, marks.get(number)
            at = shelf.clock if confirmed else shelf.confirmed(serial)
            if serial is not None:
                shelf.leave(serial, length)
                thinned.append(serial)
            # One stretch with the one behind it, if other engines say the same of both.
            if stretches and at == stretches[-1][1] and {**marks, number: 0} == {**stretches[-1][0], number: 0}:
                stretches[-1] = marks, at, begin, stretches[-1][3]
            else:
                stretches.append((marks, at, begin, end))
            end = begin
        for marks, at, begin, end in stretches:
            part = list(keys[begin:end])
            shelf.serial += 1
            shelf.touches[shelf.serial] = _Touch(part, end - begin, at)
            shelf.blocks += end - begin
            self._paths.put(part, marks, number, shelf.serial)
        self._thin(shelf, thinned)
        self._trim(shelf)

    def _thin(self, shelf: _Shelf, serials: Sequence[int]) -> None:
        """Of touches that little is left of, keep no more."""
        for serial in serials:
            touch = shelf.touches.get(serial)
            if touch is not None and touch.left * SPARSE <= len(touch.keys):
                touch.keys = self._paths.held(touch.keys, shelf.number, serial)

    def _limit(self, shelf: _Shelf) -> int:
        """Most blocks of this engine: what its cache holds, but no more than its share of the index."""
        share = self.max_blocks // len(self._shelves)
        return min(share, int(shelf.capacity_tokens / (shelf.block_tokens or 1.0)))

    def _trim(self, shelf: _Shelf) -> None:
        """Forget the least recently used blocks beyond the limit."""
        limit = self._limit(shelf)
        while shelf.blocks > limit:
            serial, touch = next(iter(shelf.touches.items()))
            gone = self._paths.drain(touch.keys, shelf.number, serial, shelf.blocks - limit)
            shelf.leave(serial, gone if touch.keys else touch.left)
