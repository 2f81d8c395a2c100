"""One kind of prefix index by itself, for tests of that kind: it has a block map of its own and numbers its engines."""

from __future__ import annotations

import math
from collections.abc import Sequence

from router.prefix.block_map import BlockMap, Marks, Run
from router.prefix.lru import LruIndex
from router.prefix.observation import CacheObservation
from router.prefix.survival import SurvivalIndex
from router.types import BlockKey, EngineId, PrefixExpectation


def all_marks(block_map: BlockMap) -> dict[BlockKey, Marks]:
    """All marks in a block map, by the key of their block."""
    return {key: marks for shard in block_map._shards for key, marks in shard.items()}


class SingleLru(LruIndex):
    def __init__(self, max_blocks: int) -> None:
        super().__init__(BlockMap(), max_blocks)

    def join(self, engine: EngineId, capacity_tokens: float, *, guessed: bool) -> None:
        """Add an engine, or take in another size of a known one."""
        number = next(n for n in range(len(self._numbered) + 1) if n not in self._numbered)
        self.add(engine, number, capacity_tokens, guessed=guessed)

    def held_runs(self, keys: Sequence[BlockKey]) -> list[Run]:
        return self._block_map.held_runs(keys)

    def match(self, keys: Sequence[BlockKey]) -> dict[EngineId, float]:
        return self.expect(self.held_runs(keys))


class SingleSurvival(SurvivalIndex):
    def __init__(self, max_blocks: int) -> None:
        super().__init__(BlockMap(), max_blocks)

    def join(self, engine: EngineId, capacity_tokens: float, order: str) -> None:
        """Add an engine, or take in another size or order of a known one."""
        number = next(n for n in range(len(self._numbered) + 1) if n not in self._numbered)
        self.add(engine, number, capacity_tokens, order)

    def held_runs(self, keys: Sequence[BlockKey]) -> list[Run]:
        return self._block_map.held_runs(keys)

    def match(self, keys: Sequence[BlockKey]) -> dict[EngineId, float]:
        return self.expect(self.held_runs(keys))

    def start(self, engine: EngineId, keys: Sequence[BlockKey]) -> PrefixExpectation:
        """Book a prompt on an engine, in blocks of one token."""
        return self.book(engine, keys, self.held_runs(keys), 0.0, 1.0)

    def finish(
        self, engine: EngineId, reply: Sequence[BlockKey], expectation: PrefixExpectation, cached: float | None
    ) -> None:
        """Take in the engine's answer.

        cached: the blocks of the prompt that the engine found in its cache; `inf`: all that it could find; None: it did
        not tell.
        """
        whole = cached == math.inf
        found = 0 if whole else cached
        prompt_tokens = 0.0 if whole else math.inf
        # Engines count whole tokens; tests may say half a block, which the survival curves take as well.
        observation = CacheObservation((), reply, expectation, 1.0, 1.0, 0.0, prompt_tokens, 0.0, found)  # type: ignore[arg-type]
        self.settle(engine, observation)

    def take_back(self, engine: EngineId, expectation: PrefixExpectation) -> None:
        self.retract(engine, (), expectation)
