"""First tokens grouped into engine steps: those within 3 ms on one engine came out of the same step.

A step's time is counted from when the engine could begin it: the oldest dispatch among its requests, or the previous
first token on that engine, whichever is later.
"""

from __future__ import annotations

from dataclasses import dataclass

from router.types import Decision

WIDTH_S = 0.003


@dataclass(slots=True)
class EngineStep:
    """One group: `requests` first tokens at first_s, lengths in tokens."""

    previous_s: float
    first_s: float
    oldest_dispatch_s: float
    requests: int = 0
    miss_tokens: float = 0.0
    hit_tokens: float = 0.0
    token_pairs: float = 0.0
    """Sum over its prompts of miss (hit + miss / 2): computed tokens, each with all before it."""
    clean: bool = True
    """False: unstreamed prompts may have been computed in it too, so its time says nothing."""

    @property
    def duration_s(self) -> float:
        return self.first_s - max(self.oldest_dispatch_s, self.previous_s)


class EngineSteps:
    """The steps of one engine. Both verbs return a step once it is over."""

    def __init__(self) -> None:
        self._step: EngineStep | None = None
        self._last_s = float("-inf")

    def add(self, decision: Decision, now: float, *, clean: bool) -> EngineStep | None:
        """A first token at `now`."""
        over = self.close(now)
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
        return over

    def close(self, now: float) -> EngineStep | None:
        """The open step, if no first token at `now` can belong to it any more."""
        step = self._step
        if step is None or now - step.first_s <= WIDTH_S:
            return None
        self._step = None
        return step
