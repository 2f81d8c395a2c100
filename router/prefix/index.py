"""What every engine's prefix cache is believed to hold, each by the index that suits its eviction order.

Engines that evict by LRU, or do not say, are in the LRU index (`prefix`), which then is exact but for what it cannot
see; engines of any other order are in the survival index (`survival`), with one learned curve an order.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from router.prefix.block_map import Run
from router.prefix.lru import LruIndex
from router.prefix.survival import SurvivalIndex
from router.prefix.survival_curve import SurvivalCurve
from router.saved_state import Fields, State
from router.types import BlockKey, EngineId, PrefixExpectation

LRU_ORDERS = frozenset({"lru", "off", None})
"""Orders that the LRU index suits; an engine that names none is taken for stock vLLM."""


class Match(NamedTuple):
    """What is believed to be held of one prompt."""

    blocks: dict[EngineId, float]
    """Index blocks that each engine is expected to hold; engines with none may be left out."""
    lru: list[Run]
    survival: list[Run]
    """What the two indexes found on the way, for `book`."""


class PrefixIndex:
    """Both indexes as one. Lengths are index blocks; the cap is shared."""

    def __init__(self, max_blocks: int) -> None:
        self._max_blocks = max_blocks
        self._lru = LruIndex(max_blocks)
        self._survival = SurvivalIndex(max_blocks)

    def __len__(self) -> int:
        """(block, engine) pairs held."""
        return len(self._lru) + len(self._survival)

    def add(self, engine: EngineId, capacity_tokens: float, *, guessed: bool, order: str | None) -> None:
        """A new engine, or a known one that tells another size or order: under another index it starts empty."""
        if order in LRU_ORDERS:
            if engine in self._survival:
                self._survival.remove(engine)
            self._lru.add(engine, capacity_tokens, guessed=guessed)
        else:
            if engine in self._lru:
                self._lru.remove(engine)
            self._survival.add(engine, capacity_tokens, order or "")
        self._divide()

    def remove(self, engine: EngineId) -> None:
        self._of(engine).remove(engine)
        self._divide()

    def forget(self, engine: EngineId) -> None:
        """The engine's cache is empty, as after a restart."""
        self._of(engine).forget(engine)

    def capacity_tokens(self, engine: EngineId) -> float:
        """The engine's cache, as corrected by what was observed where the index corrects it."""
        return self._of(engine).capacity_tokens(engine)

    def blocks(self, engine: EngineId) -> int:
        return self._of(engine).blocks(engine)

    def match(self, keys: Sequence[BlockKey]) -> Match:
        lru, survival = self._lru.walk(keys), self._survival.walk(keys)
        return Match({**self._lru.expect(lru), **self._survival.expect(survival)}, lru, survival)

    def book(self, engine: EngineId, keys: Sequence[BlockKey], match: Match, block_tokens: float) -> PrefixExpectation:
        """The prompt goes to `engine`. match: of this prompt, now. Returns what the end will need."""
        if engine in self._survival:
            return self._survival.book(engine, keys, match.survival, block_tokens)
        return self._lru.book(engine, keys, match.lru, int(match.blocks.get(engine, 0)), block_tokens)

    def settle(
        self,
        engine: EngineId,
        prompt: Sequence[BlockKey],
        reply: Sequence[BlockKey],
        expectation: PrefixExpectation,
        *,
        block_tokens: float,
        slack_tokens: float,
        exact: float,
        prompt_tokens: float,
        predicted_tokens: float,
        cached_tokens: int | None,
    ) -> None:
        """The engine answered; `reply`: keys that the answer adds to those of the prompt.

        `exact`: tokens of the engine over tokens as estimated, for `block_tokens`; the other lengths are the engine's.
        `cached_tokens`: what it found, None if it does not tell. `slack_tokens`: a difference that says nothing.
        """
        if engine in self._survival:
            blocks = None
            if cached_tokens is not None:
                whole = cached_tokens + slack_tokens >= prompt_tokens
                blocks = math.inf if whole else cached_tokens / (block_tokens * exact)
            self._survival.settle(engine, reply, expectation, blocks)
        elif engine in self._lru:
            self._lru.settle(
                engine,
                (*prompt, *reply),
                expectation,
                block_tokens=block_tokens,
                slack_tokens=slack_tokens,
                predicted_tokens=predicted_tokens,
                cached_tokens=cached_tokens,
            )

    def retract(self, engine: EngineId, keys: Sequence[BlockKey], expectation: PrefixExpectation) -> None:
        """The request ended before any sign of its prefill."""
        self._survival.retract(engine, expectation)
        self._lru.retract(engine, keys, expectation)

    def dump(self) -> State:
        """The learned curves by order; what engines hold is not kept."""
        return {order: curve.dump() for order, curve in self._survival.curves.items()}

    def load(self, state: Fields) -> None:
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

    def _of(self, engine: EngineId) -> LruIndex | SurvivalIndex:
        return self._survival if engine in self._survival else self._lru
