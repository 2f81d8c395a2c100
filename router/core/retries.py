"""When a request is tried again on another engine. The gateway and the simulator share this rule.

A request is tried again only while its client has seen nothing of an answer, and never on an engine that it has been
sent to before. A request that timed out is never tried again: its engine may still be working on it.

Two things bound the tries besides `max_retries`. Work that is done again is paid from a budget (`RetryBudget`): a share
of the time that engines spend on answers. What is lost with a try is the time that it took, and no more than was
predicted for it: an engine that refuses at once has spent nothing, and one that hangs has not worked for all the time
that was waited for it. A move away from an engine that was taken out is free: it has stopped, and its requests are to
be served elsewhere.

And a request that breaks connections is not taken to a third engine, or one that kills engines would kill all of them,
but a broken connection counts only if the engine has not broken others of late (`Breaks`): then it is the engine.
"""

from __future__ import annotations

from router.errors import RetryReason
from router.types import EngineId

MOST_BREAKS = 2  # engines that one request may break by itself
BREAKS_S = 30.0  # an engine that has broken another request's connection within that time does so by itself
BUDGET_SHARE = 0.2  # of the time of answers
BUDGET_S = 60.0  # the budget at the start
MOST_BUDGET_S = 3600.0


class Retries:
    """The tries of one request. max_retries: how many other engines may be tried after the first."""

    def __init__(self, max_retries: int) -> None:
        self._max_retries = max_retries
        self._breaks = 0
        self.tried: list[EngineId] = []
        """The engines that the request has been sent to, in that order. The next choice must leave them out."""

    def began(self, engine: EngineId) -> None:
        """The request is sent to an engine."""
        self.tried.append(engine)

    def failed(self, reason: RetryReason, *, answer_begun: bool, alone: bool = True) -> bool:
        """The last try failed. Return whether there may be another one.

        answer_begun: the client has seen something of the answer. alone: the engine has not failed others of late.
        """
        self._breaks += alone and reason in (RetryReason.RESET, RetryReason.FAILED)
        return not answer_begun and self._breaks < MOST_BREAKS and len(self.tried) <= self._max_retries


class Breaks:
    """When each engine last failed a request. One entry for each engine."""

    def __init__(self) -> None:
        self._last_s: dict[EngineId, float] = {}

    def alone(self, engine: EngineId, now: float) -> bool:
        """Note a failure now, and return whether it is the only one of the last BREAKS_S seconds."""
        last_s = self._last_s.get(engine, float("-inf"))
        self._last_s[engine] = now
        return now - last_s > BREAKS_S


class RetryBudget:
    """How much work may be done again, in seconds of engine time."""

    def __init__(self) -> None:
        self.left_s = BUDGET_S

    def answered(self, took_s: float) -> None:
        """An engine has answered a request, after so long."""
        self.left_s = min(MOST_BUDGET_S, self.left_s + BUDGET_SHARE * took_s)

    def spend(self, reason: RetryReason, took_s: float, predicted_s: float | None) -> bool:
        """Pay for a try that failed for that reason, after so long. Return False, and pay nothing, if the budget is
        used up. predicted_s: how long it was predicted to take; None: that is not known."""
        if reason is RetryReason.MOVED:
            return True
        lost_s = took_s if predicted_s is None else min(took_s, predicted_s)
        if lost_s > self.left_s:
            return False
        self.left_s -= lost_s
        return True
