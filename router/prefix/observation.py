"""What an answer tells about an engine's cache (`CacheObservation`), and the protocol of the two kinds of index."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

from router.prefix.block_map import Run
from router.types import BlockKey, EngineId, PrefixExpectation


class CacheObservation(NamedTuple):
    """One answered request beside what was expected of it. Lengths are in tokens as the engine counts them; only
    `block_tokens` is in estimated tokens."""

    prompt: Sequence[BlockKey]
    reply: Sequence[BlockKey]
    """Keys of the blocks that the answer adds to those of the prompt."""
    expectation: PrefixExpectation
    block_tokens: float
    """Tokens in one index block, as estimated when the request was placed."""
    token_ratio: float
    """Tokens of the prompt as the engine counts them, divided by tokens as estimated."""
    slack_tokens: float
    """Largest difference between expected and cached tokens that means nothing, because index and engine cut the prompt
    into blocks of different sizes."""
    prompt_tokens: float
    expected_tokens: float
    """The hit that the index expected."""
    cached_tokens: int | None
    """The hit that the engine reported; None if it reported none, or one that cannot be compared."""


class EngineIndex(Protocol):
    """What the engines in one kind of index are believed to hold. The block map is shared with the other kind.

    Lengths are in index blocks. `max_blocks`: the most (block, engine) pairs that may be kept for all engines of this
    index together. `settle` and `retract` ignore an engine that is no longer in the index.
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
        """The engine's cache is empty, for example after a restart."""
        ...

    def blocks(self, engine: EngineId) -> int:
        """Index blocks that this engine is believed to hold."""
        ...

    def capacity_tokens(self, engine: EngineId) -> float:
        """Size of the engine's cache, tokens, corrected by what answers report if this index does so."""
        ...

    def expect(self, runs: Sequence[Run]) -> Mapping[EngineId, float]:
        """Blocks of a path that each engine is expected to hold; engines that hold none are left out. runs: the path as
        `BlockMap.held_runs` has just given it."""
        ...

    def book(
        self, engine: EngineId, keys: Sequence[BlockKey], runs: Sequence[Run], expected: float, block_tokens: float
    ) -> PrefixExpectation:
        """The prompt is sent to `engine`. keys, runs: the prompt, and its `BlockMap.held_runs` made just now. expected:
        what `expect` gave for this engine. block_tokens: tokens in one index block of the prompt."""
        ...

    def settle(self, engine: EngineId, observation: CacheObservation) -> None:
        """The engine answered the request."""
        ...

    def retract(self, engine: EngineId, keys: Sequence[BlockKey], expectation: PrefixExpectation) -> None:
        """The request ended before there was any sign of its prefill: remove the blocks that only this request would
        have brought into the cache."""
        ...
