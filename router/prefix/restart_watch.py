"""Noticing that an engine has lost its whole cache, as by a restart that no health check saw.

When an answer shows that a block is not cached which the index expected there with the chance S, then either it was
evicted, which has the chance 1 - S, or the cache is empty. The chance that all such losses in a row were evictions is

    doubt = product over the losses of (1 - min(S, MOST_CHANCE)),   a restart is certain enough below CONVICTION

One block that is older than the first loss and is found refutes the suspicion. What was touched after the first loss
tells nothing, because it is cached again either way: the system prompt that all requests share is there from the second
request on, and so is a prompt that is repeated. So each answer is judged by the first block of its prompt that nobody
has touched since (`Telling`), and only the blocks that were not touched since are forgotten in the end.
"""

from __future__ import annotations

from dataclasses import dataclass

from router.prefix.observation import CacheObservation

MOST_CHANCE = 0.95
CONVICTION = 0.005
TOLERANCE = 0.1
"""Relative error of a length in tokens that is estimated from its blocks."""


@dataclass(slots=True)
class RestartWatch:
    """The suspicion against one engine. Touches are numbered in their order; what the numbers mean is up to the
    index."""

    since: int | None = None
    """The last touch before the first loss; None: nothing is suspected."""
    doubt: float = 1.0
    number: int = 0
    """How many suspicions there have been, for answers that were asked for before the present one began."""

    def tells(self, touch: int) -> bool:
        """Whether a block that was touched last then would be gone after the restart that is suspected, if any."""
        return self.since is None or touch <= self.since

    def judge(self, observation: CacheObservation, last_touch: int) -> bool:
        """Take in an answer, and return whether the engine has lost its cache. last_touch: the last one before a first
        loss, if this is one."""
        telling = observation.expectation.telling
        if telling is None or observation.cached_tokens is None:
            return False
        if telling.number < self.number - (self.since is not None):
            return False  # it was asked for before another suspicion ended, which may be what it tells of
        found = _found(observation, telling.block)
        if found is None:
            return False
        if found:
            if telling.number == self.number:  # else it may have been cached again since the suspicion began
                self.clear()
            return False
        if self.since is None:
            self.since, self.number = last_touch, self.number + 1
        self.doubt *= 1 - min(telling.chance, MOST_CHANCE)
        return self.doubt < CONVICTION

    def clear(self) -> None:
        if self.since is not None:
            self.since, self.doubt, self.number = None, 1.0, self.number + 1


def _found(observation: CacheObservation, block: int) -> bool | None:
    """Whether that block of the prompt was cached; None if that cannot be told."""
    cached_tokens, block_tokens = observation.cached_tokens, observation.block_tokens * observation.token_ratio
    assert cached_tokens is not None
    before = block * block_tokens * (1 + TOLERANCE) + observation.slack_tokens if block else 0.0
    if cached_tokens > before:
        return True
    expected = observation.expectation.blocks * block_tokens * (1 - TOLERANCE if block else 1.0)
    return False if expected > before + observation.slack_tokens else None
