"""Engines are not trusted with numbers."""

from __future__ import annotations

from dataclasses import replace

from router.types import Outcome


def checked(outcome: Outcome) -> Outcome:
    """A count that cannot be is taken as not told."""
    prompt, cached, output = outcome.prompt_tokens, outcome.cached_tokens, outcome.output_tokens
    if prompt is not None and prompt <= 0:
        prompt = None
    if cached is not None and (prompt is None or not 0 <= cached <= prompt):
        cached = None
    if output is not None and output <= 0:
        output = None
    counts = prompt, cached, output
    if counts == (outcome.prompt_tokens, outcome.cached_tokens, outcome.output_tokens):
        return outcome
    return replace(outcome, prompt_tokens=prompt, cached_tokens=cached, output_tokens=output)
