"""What each engine's prefix cache is believed to hold: one bounded index of block keys, an LRU order per engine.

    holders[key] = bit mask of the engines that hold the block;  hit of engine i = longest run of blocks from the root
    with i's bit set.  One walk of the prompt answers for all engines: O(blocks) dictionary look-ups, about 0.1 us each.

A block is put in at dispatch, so that a burst of equal prompts stays together, and touched again at completion, when
the engine itself lets go of it; tails age before roots, as in the engine. How much an engine really keeps is learned
from the `cached_tokens` it reports: the capacity shrinks where hits were promised in vain and grows where more was
found. A prediction that only a restart or a flush can have broken, broken twice in a row, clears the engine's part.

Memory: at most `max_blocks` (block, engine) pairs, shared evenly by the engines; about 200 bytes each.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field

from router.types import BlockKey, EngineId, Lookup

KNOWN_STEP, GUESSED_STEP = 0.02, 0.05  # one correction of the capacity, by whether the engine told its size
MOST_GROWTH, MOST_SHRINK = 4.0, 1 / 64  # bounds of the corrected capacity against the start
RECENT_SHARE = 0.25  # of the capacity, in blocks touched since: younger blocks are in the engine's cache for certain
FLUSH_LOSSES = 2
UNCONFIRMED = 0


@dataclass(slots=True)
class _Shelf:
    """One engine's part. `order`: block -> `clock` when an answer last confirmed it; least recently used first."""

    bit: int
    start_tokens: float
    step: float
    capacity_tokens: float
    block_tokens: float | None = None  # mean size of an index block here
    order: OrderedDict[BlockKey, int] = field(default_factory=OrderedDict)
    clock: int = UNCONFIRMED  # blocks touched so far
    losses: int = 0  # certain predictions lost in a row


class PrefixIndex:
    """The index for engines that evict least recently used blocks first (a fair guess for other orders).

    Lengths are index blocks; `block_tokens` says how many tokens one holds, so that text of any density fits.
    Engines that are not (any more) known are ignored by the verbs of a request's end.
    """

    def __init__(self, max_blocks: int) -> None:
        self._max_blocks = max_blocks
        self._shelves: dict[EngineId, _Shelf] = {}
        self._engine_of: dict[int, EngineId] = {}  # bit -> engine
        self._holders: dict[BlockKey, int] = {}
        self._all = 0

    def __len__(self) -> int:
        """(block, engine) pairs held."""
        return sum(len(shelf.order) for shelf in self._shelves.values())

    def __contains__(self, engine: EngineId) -> bool:
        return engine in self._shelves

    def add(self, engine: EngineId, capacity_tokens: float, *, guessed: bool) -> None:
        """A new engine, or a known one that tells another size: what it held stays, its corrections start anew."""
        shelf = self._shelves.get(engine)
        if shelf is None:
            bit = 1
            while bit & self._all:
                bit <<= 1
            shelf = self._shelves[engine] = _Shelf(bit, 0.0, 0.0, 0.0)
            self._engine_of[bit] = engine
            self._all |= bit
        shelf.start_tokens = shelf.capacity_tokens = capacity_tokens
        shelf.step = GUESSED_STEP if guessed else KNOWN_STEP
        for each in self._shelves.values():
            self._trim(each)

    def remove(self, engine: EngineId) -> None:
        self.forget(engine)
        shelf = self._shelves.pop(engine)
        del self._engine_of[shelf.bit]
        self._all &= ~shelf.bit

    def forget(self, engine: EngineId) -> None:
        """The engine's cache is empty, as after a restart."""
        shelf = self._shelves[engine]
        for key in shelf.order:
            self._release(key, shelf.bit)
        shelf.order.clear()
        shelf.losses = 0

    def capacity_tokens(self, engine: EngineId) -> float:
        """The engine's cache as corrected by what was observed."""
        return self._shelves[engine].capacity_tokens

    def blocks(self, engine: EngineId) -> int:
        return len(self._shelves[engine].order)

    def match(self, keys: Sequence[BlockKey]) -> dict[EngineId, int]:
        """Blocks of the prompt that each engine is believed to hold; engines with none are left out."""
        found: dict[EngineId, int] = {}
        holders, mask, depth = self._holders, self._all, 0
        for key in keys:
            still = holders.get(key, 0) & mask
            if still != mask:
                if depth:
                    self._note(found, mask & ~still, depth)
                mask = still
                if not mask:
                    return found
            depth += 1
        if depth:
            self._note(found, mask, depth)
        return found

    def _note(self, found: dict[EngineId, int], mask: int, depth: int) -> None:
        while mask:
            bit = mask & -mask
            found[self._engine_of[bit]] = depth
            mask ^= bit

    def book(self, engine: EngineId, keys: Sequence[BlockKey], matched: int, block_tokens: float) -> Lookup:
        """The prompt goes to `engine`, which `match` gave `matched` blocks. Returns what `settle` will need."""
        shelf = self._shelves[engine]
        confirmed = shelf.order.get(keys[matched - 1], UNCONFIRMED) if matched else UNCONFIRMED
        young = shelf.clock - confirmed <= RECENT_SHARE * self._limit(shelf)
        self._touch(shelf, keys, block_tokens, confirmed=False)
        return Lookup(matched, confirmed != UNCONFIRMED and young)

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
        self._touch(shelf, keys, block_tokens, confirmed=True)

    def retract(self, engine: EngineId, keys: Sequence[BlockKey], lookup: Lookup) -> None:
        """The request ended before any sign of its prefill: blocks that no answer ever confirmed are taken out."""
        shelf = self._shelves.get(engine)
        if shelf is None:
            return
        for key in keys[lookup.blocks :]:
            if shelf.order.get(key) == UNCONFIRMED:
                del shelf.order[key]
                self._release(key, shelf.bit)

    def _correct(self, shelf: _Shelf, surplus_tokens: float, slack_tokens: float) -> None:
        if abs(surplus_tokens) <= slack_tokens:
            return
        factor = 1 - shelf.step if surplus_tokens > 0 else 1 + shelf.step
        low, high = shelf.start_tokens * MOST_SHRINK, shelf.start_tokens * MOST_GROWTH
        shelf.capacity_tokens = min(high, max(low, shelf.capacity_tokens * factor))

    def _touch(self, shelf: _Shelf, keys: Sequence[BlockKey], block_tokens: float, *, confirmed: bool) -> None:
        """Make `keys` the most recently used, the root last: of one prompt the tail is forgotten first."""
        if shelf.block_tokens is None:
            shelf.block_tokens = block_tokens
        shelf.block_tokens += (block_tokens - shelf.block_tokens) / 16
        shelf.clock += len(keys)
        order, holders, bit = shelf.order, self._holders, shelf.bit
        for key in reversed(keys):
            if key in order:
                order.move_to_end(key)
                if confirmed:
                    order[key] = shelf.clock
            else:
                order[key] = shelf.clock if confirmed else UNCONFIRMED
                holders[key] = holders.get(key, 0) | bit
        self._trim(shelf)

    def _limit(self, shelf: _Shelf) -> int:
        """Most blocks of this engine: what its cache holds, but no more than its share of the index."""
        share = self._max_blocks // len(self._shelves)
        return min(share, int(shelf.capacity_tokens / (shelf.block_tokens or 1.0)))

    def _trim(self, shelf: _Shelf) -> None:
        order, release, bit = shelf.order, self._release, shelf.bit
        for _ in range(len(order) - self._limit(shelf)):
            release(order.popitem(last=False)[0], bit)

    def _release(self, key: BlockKey, bit: int) -> None:
        """`key` is held under `bit`, and no longer is."""
        left = self._holders.pop(key) ^ bit
        if left:
            self._holders[key] = left
