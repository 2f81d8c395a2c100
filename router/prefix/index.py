"""What every engine's prefix cache is believed to hold: one facade for two kinds of index.

Each engine is in the index that suits its eviction order. Engines that evict by LRU, or do not name their order, are in
the LRU index (`lru`), which is exact for such an engine but for what the router cannot see. Engines of any other order
are in the survival index (`survival`), which learns one curve for each order. Both keep their marks in one block map,
so that one walk of a prompt answers for all engines.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from router.prefix.block_map import BlockMap, Run
from router.prefix.lru import LruIndex
from router.prefix.observation import CacheObservation, EngineIndex
from router.prefix.survival import SurvivalIndex
from router.prefix.survival_curve import SurvivalCurve
from router.saved_state import SavedFields, SavedState
from router.types import BlockKey, EngineId, PrefixExpectation

LRU_ORDERS = frozenset({"lru", "off", None})
"""Orders of the engines in the LRU index. An engine that names none is taken for stock vLLM, which evicts by LRU."""


class Match(NamedTuple):
    """What the engines are believed to hold of one prompt."""

    blocks: dict[EngineId, float]
    """Index blocks of the prompt that each engine is expected to hold; engines that hold none may be left out."""
    runs: list[Run]
    """The beginning of the prompt that some engine holds, as runs of the block map, for `book`."""


class PrefixIndex:
    """Both indexes as one. Lengths are in index blocks. At most `max_blocks` (block, engine) pairs are kept in all."""

    def __init__(self, max_blocks: int) -> None:
        self._max_blocks = max_blocks
        self._block_map = BlockMap()
        self._numbers: dict[EngineId, int] = {}  # in the block map; the number of an engine that left is given again
        self._lru = LruIndex(self._block_map, max_blocks)
        self._survival = SurvivalIndex(self._block_map, max_blocks)

    def __len__(self) -> int:
        """(block, engine) pairs held."""
        return len(self._lru) + len(self._survival)

    def add(self, engine: EngineId, capacity_tokens: float, *, guessed: bool, order: str | None) -> None:
        """Add an engine, or take up another size or order of a known one. An engine that moves to the other index
        starts empty there. guessed: the engine did not tell its size."""
        if engine not in self._numbers:
            in_use = set(self._numbers.values())
            self._numbers[engine] = next(number for number in range(len(in_use) + 1) if number not in in_use)
        number, evicts_by_lru = self._numbers[engine], order in LRU_ORDERS
        other = self._survival if evicts_by_lru else self._lru
        if engine in other:
            other.remove(engine)
        if evicts_by_lru:
            self._lru.add(engine, number, capacity_tokens, guessed=guessed)
        else:
            self._survival.add(engine, number, capacity_tokens, order or "")
        self._divide()

    def remove(self, engine: EngineId) -> None:
        self._of(engine).remove(engine)
        del self._numbers[engine]
        self._divide()

    def forget(self, engine: EngineId) -> None:
        """The engine's cache is empty, for example after a restart."""
        self._of(engine).forget(engine)

    def capacity_tokens(self, engine: EngineId) -> float:
        """Size of the engine's cache, tokens. The LRU index corrects what the engine told by what answers report."""
        return self._of(engine).capacity_tokens(engine)

    def blocks(self, engine: EngineId) -> int:
        """Index blocks that this engine is believed to hold."""
        return self._of(engine).blocks(engine)

    def match(self, keys: Sequence[BlockKey]) -> Match:
        runs = self._block_map.held_runs(keys)
        if not self._survival.engines:
            return Match(dict(self._lru.expect(runs)), runs)
        return Match({**self._lru.expect(runs), **self._survival.expect(runs)}, runs)

    def book(self, engine: EngineId, keys: Sequence[BlockKey], match: Match, block_tokens: float) -> PrefixExpectation:
        """The prompt is sent to `engine`. match: the match of this prompt, made just now. block_tokens: tokens in one
        of its index blocks. Returns what `settle` or `retract` needs at the end of the request."""
        return self._of(engine).book(engine, keys, match.runs, match.blocks.get(engine, 0.0), block_tokens)

    def settle(self, engine: EngineId, observation: CacheObservation) -> None:
        """The engine answered the request."""
        self._of(engine).settle(engine, observation)

    def retract(self, engine: EngineId, keys: Sequence[BlockKey], expectation: PrefixExpectation) -> None:
        """The request ended before there was any sign of its prefill."""
        self._of(engine).retract(engine, keys, expectation)

    def dump(self) -> SavedState:
        """The learned survival curves by order. What the engines hold is not saved."""
        return {order: curve.dump() for order, curve in self._survival.curves.items()}

    def load(self, state: SavedFields) -> None:
        """Raises SnapshotError."""
        for order in state:  # check all curves before any is taken over
            SurvivalCurve().load(state.fields(order))
        for order in state:
            self._survival.curves.setdefault(order, SurvivalCurve()).load(state.fields(order))

    def _divide(self) -> None:
        """Share the cap out to the two indexes in proportion to their engines."""
        engines = max(1, self._lru.engines + self._survival.engines)
        for index in (self._lru, self._survival):
            index.max_blocks = self._max_blocks * index.engines // engines

    def _of(self, engine: EngineId) -> EngineIndex:
        return self._survival if engine in self._survival else self._lru
