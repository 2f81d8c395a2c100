"""What an answer shows about the cache of its engine, in the form in which the prefix index learns from it."""

from __future__ import annotations

from collections.abc import Sequence

from router.prefix.observation import CacheObservation
from router.types import BlockKey, Decision, Outcome

COMPARABLE_RATIO = 3.0
"""If a prompt has this many times more or fewer tokens than estimated, it is not the text that the estimate was made
for."""


def observe_cache(
    decision: Decision, outcome: Outcome, reply: Sequence[BlockKey], engine_block_tokens: float
) -> CacheObservation:
    """Compare the cached tokens that the engine reports with those that the decision expected.

    The two are compared in tokens as the engine counts them, which keeps the error of the token ratio out. They are not
    compared where that is impossible: if the usage covers several prompts, or if most of the prompt is not text.

    reply: the keys that the answer adds to those of the prompt. engine_block_tokens: the tokens in a block of the
    engine's cache, 0 if unknown.
    """
    prompt = decision.request.prompt
    token_ratio = (outcome.prompt_tokens or decision.prompt_tokens) / max(1.0, decision.prompt_tokens)
    comparable = decision.request.choices == 1 and 1 / COMPARABLE_RATIO <= token_ratio <= COMPARABLE_RATIO
    block_tokens = prompt.block_units * decision.tokens_per_unit
    return CacheObservation(
        prompt.keys,
        reply,
        decision.expectation,
        block_tokens,
        token_ratio,
        max(block_tokens, engine_block_tokens),
        decision.prompt_tokens * token_ratio,
        decision.hit_tokens * token_ratio,
        outcome.cached_tokens if comparable else None,
    )
