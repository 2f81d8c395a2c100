"""What every engine's prefix cache is believed to hold, each by the index that suits its eviction order.

Engines that evict by LRU, or do not say, are in the LRU index (`lru`), which then is exact but for what it cannot see;
engines of any other order are in the survival index (`survival`), with one learned curve an order. Both keep their
marks in one block map, so that one walk of a prompt answers for all engines.
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
"""Orders that the LRU index suits; an engine that names none is taken for stock vLLM."""


class Match(NamedTuple):
    """What is believed to be held of one prompt."""

    blocks: dict[EngineId, float]
    """Index blocks that each engine is expected to hold; engines with none may be left out."""
    runs: list[Run]
    """The prompt's walk through the block map, for `book`."""


class PrefixIndex:
    """Both indexes as one. Lengths are index blocks; at most `max_blocks` (block, engine) pairs are kept in all."""

    def __init__(self, max_blocks: int) -> None:
        self._max_blocks = max_blocks
        self._block_map = BlockMap()
        self._numbers: dict[EngineId, int] = {}  # in the block map; that of an engine that left is given again
        self._lru = LruIndex(self._block_map, max_blocks)
        self._survival = SurvivalIndex(self._block_map, max_blocks)

    def __len__(self) -> int:
        """(block, engine) pairs held."""
        return len(self._lru) + len(self._survival)

    def add(self, engine: EngineId, capacity_tokens: float, *, guessed: bool, order: str | None) -> None:
        """A new engine, or a known one that tells another size or order: under another index it starts empty."""
        if engine not in self._numbers:
            taken = set(self._numbers.values())
            self._numbers[engine] = next(number for number in range(len(taken) + 1) if number not in taken)
        number, suits = self._numbers[engine], order in LRU_ORDERS
        before = self._survival if suits else self._lru
        if engine in before:
            before.remove(engine)
        if suits:
            self._lru.add(engine, number, capacity_tokens, guessed=guessed)
        else:
            self._survival.add(engine, number, capacity_tokens, order or "")
        self._divide()

    def remove(self, engine: EngineId) -> None:
        self._of(engine).remove(engine)
        del self._numbers[engine]
        self._divide()

    def forget(self, engine: EngineId) -> None:
        """The engine's cache is empty, as after a restart."""
        self._of(engine).forget(engine)

    def capacity_tokens(self, engine: EngineId) -> float:
        """The engine's cache, as corrected by what was observed where the index corrects it."""
        return self._of(engine).capacity_tokens(engine)

    def blocks(self, engine: EngineId) -> int:
        """Blocks held of one engine."""
        return self._of(engine).blocks(engine)

    def match(self, keys: Sequence[BlockKey]) -> Match:
        runs = self._block_map.walk(keys)
        if not self._survival.engines:
            return Match(dict(self._lru.expect(runs)), runs)
        return Match({**self._lru.expect(runs), **self._survival.expect(runs)}, runs)

    def book(self, engine: EngineId, keys: Sequence[BlockKey], match: Match, block_tokens: float) -> PrefixExpectation:
        """The prompt goes to `engine`. match: of this prompt, now. block_tokens: of an index block of it. Returns what
        the end will need."""
        return self._of(engine).book(engine, keys, match.runs, match.blocks.get(engine, 0.0), block_tokens)

    def settle(self, engine: EngineId, observation: CacheObservation) -> None:
        """The engine answered."""
        self._of(engine).settle(engine, observation)

    def retract(self, engine: EngineId, keys: Sequence[BlockKey], expectation: PrefixExpectation) -> None:
        """The request ended before any sign of its prefill."""
        self._of(engine).retract(engine, keys, expectation)

    def dump(self) -> SavedState:
        """The learned curves by order; what engines hold is not kept."""
        return {order: curve.dump() for order, curve in self._survival.curves.items()}

    def load(self, state: SavedFields) -> None:
        """Raises SnapshotError."""
        for order in state:  # all or none
            SurvivalCurve().load(state.fields(order))
        for order in state:
            self._survival.curves.setdefault(order, SurvivalCurve()).load(state.fields(order))

    def _divide(self) -> None:
        """Each index may hold as much of the cap as it has of the engines."""
        engines = max(1, self._lru.engines + self._survival.engines)
        for index in (self._lru, self._survival):
            index.max_blocks = self._max_blocks * index.engines // engines

    def _of(self, engine: EngineId) -> EngineIndex:
        return self._survival if engine in self._survival else self._lru
