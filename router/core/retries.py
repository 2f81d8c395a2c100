"""When a request is tried again on another engine. The gateway and the simulator share this rule.

A request is tried again only while its client has seen nothing of an answer, and never on an engine that it has been
sent to before. The retry must not repeat work that is still of use:

- The engine could not be reached (`CONNECT`) or was busy (`BUSY`). It did not begin, so up to `max_retries` other
  engines are tried.
- The connection broke (`RESET`). The engine died, and what it had generated is lost. The request is tried once more
  and not again, or a request that kills engines would kill all of them.

A request that timed out is never tried again: its engine may still be working on it, and another engine would have to
compute the prompt anew.
"""

from __future__ import annotations

from router.errors import RetryReason
from router.types import EngineId

MOST_BREAKS = 2  # connections that may break for one request


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

    def failed(self, reason: RetryReason, *, answer_begun: bool) -> bool:
        """The last try failed. Return whether there may be another one.

        answer_begun: the client has seen something of the answer.
        """
        self._breaks += reason is RetryReason.RESET
        return not answer_begun and self._breaks < MOST_BREAKS and len(self.tried) <= self._max_retries
