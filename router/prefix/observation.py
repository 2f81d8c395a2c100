"""What an answer tells of an engine's cache, and what the two kinds of index have in common."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

from router.prefix.block_map import Run
from router.types import BlockKey, EngineId, PrefixExpectation


class CacheObservation(NamedTuple):
    """One answered request, compared with what was expected of it. Lengths are tokens as the engine counts them, but
    for `block_tokens`."""

    prompt: Sequence[BlockKey]
    reply: Sequence[BlockKey]
    """Keys that the answer adds to those of the prompt."""
    expectation: PrefixExpectation
    block_tokens: float
    """Of one index block, as estimated when the request was placed."""
    token_ratio: float
    """Tokens as the engine counts them over tokens as estimated."""
    slack_tokens: float
    """A difference that says nothing: index and engine cut the prompt differently."""
    prompt_tokens: float
    expected_tokens: float
    """The hit that was expected."""
    cached_tokens: int | None
    """The hit that was found; None if the engine does not tell, or if it cannot be compared."""


class EngineIndex(Protocol):
    """What the engines of one kind are believed to hold, within a block map that is shared with the other kind.

    Lengths are index blocks. `max_blocks`: (block, engine) pairs that may be kept of all engines here together.
    Engines that are not (any more) known are ignored by the verbs of a request's end.
    """

    max_blocks: int

    def __contains__(self, engine: EngineId) -> bool: ...
    def __len__(self) -> int:
        """(block, engine) pairs held."""
        ...

    @property
    def engines(self) -> int: ...
    def remove(self, engine: EngineId) -> None: ...
    def forget(self, engine: EngineId) -> None:
        """The engine's cache is empty, as after a restart."""
        ...

    def blocks(self, engine: EngineId) -> int:
        """Blocks held of one engine."""
        ...

    def capacity_tokens(self, engine: EngineId) -> float:
        """The engine's cache, as corrected by what was observed where the index corrects it."""
        ...

    def expect(self, runs: Sequence[Run]) -> Mapping[EngineId, float]:
        """Blocks of a path, walked just now, that each engine is expected to hold; engines with none are left out."""
        ...

    def book(
        self, engine: EngineId, keys: Sequence[BlockKey], runs: Sequence[Run], expected: float, block_tokens: float
    ) -> PrefixExpectation:
        """The prompt goes to `engine`, of which `expect` gave `expected` blocks; runs: its walk, just now."""
        ...

    def settle(self, engine: EngineId, observation: CacheObservation) -> None:
        """The engine answered."""
        ...

    def retract(self, engine: EngineId, keys: Sequence[BlockKey], expectation: PrefixExpectation) -> None:
        """The request ended before any sign of its prefill: what it alone would have brought is taken out."""
        ...
