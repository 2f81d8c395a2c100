"""Groups the first tokens of an engine into the engine steps that gave them. First tokens that come within 3 ms are
taken to be of the same step.

The time of a step is counted from when the engine could begin it: the oldest dispatch among its requests, or the
previous first token on that engine, whichever is later.
"""

from __future__ import annotations

from dataclasses import dataclass

from router.types import Decision

WIDTH_S = 0.003  # first tokens of one step come within this time


@dataclass(slots=True)
class EngineStep:
    """One step, which gave `requests` first tokens from first_s on. Lengths are in tokens, added up over its
    requests."""

    previous_s: float
    first_s: float
    oldest_dispatch_s: float
    requests: int = 0
    miss_tokens: float = 0.0
    hit_tokens: float = 0.0
    token_pairs: float = 0.0
    """Sum over its prompts of miss (hit + miss / 2): the pairs of a computed token and a token before it."""
    clean: bool = True
    """False if unstreamed prompts may have been computed in this step too, so that its time teaches nothing."""

    @property
    def duration_s(self) -> float:
        return self.first_s - max(self.oldest_dispatch_s, self.previous_s)


class EngineSteps:
    """The steps of one engine. Both methods return the open step if they find that it is over."""

    def __init__(self) -> None:
        self._step: EngineStep | None = None
        self._last_s = float("-inf")

    def add(self, decision: Decision, now: float, *, clean: bool) -> EngineStep | None:
        """A first token came at `now`. clean: see `EngineStep.clean`."""
        finished = self.close(now)
        if self._step is None:
            self._step = EngineStep(self._last_s, now, decision.dispatched_s)
        step = self._step
        self._last_s = now
        step.oldest_dispatch_s = min(step.oldest_dispatch_s, decision.dispatched_s)
        step.requests += 1
        miss_tokens, hit_tokens = decision.prompt_tokens - decision.hit_tokens, decision.hit_tokens
        step.miss_tokens += miss_tokens
        step.hit_tokens += hit_tokens
        step.token_pairs += miss_tokens * (hit_tokens + miss_tokens / 2)
        step.clean = step.clean and clean
        return finished

    def close(self, now: float) -> EngineStep | None:
        """End the open step and return it, if a first token at `now` would come too late to belong to it; else None."""
        step = self._step
        if step is None or now - step.first_s <= WIDTH_S:
            return None
        self._step = None
        return step
