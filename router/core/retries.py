"""When a request is tried again on another engine: one rule, driven by the gateway and by the simulator.

A request moves only while its client has seen nothing of an answer, never to an engine that it has been on, and only
where that costs no work twice or the work is lost anyway:

- the engine could not be reached (`CONNECT`) or was busy (`BUSY`): it did not start; up to `most` other engines;
- the connection broke (`RESET`: the engine died, and what it generated with it): once, lest a request that kills
  engines
  kill them all.

A timeout is never tried again: the engine may still be at work, and elsewhere the prompt would be computed anew.
"""

from __future__ import annotations

from router.errors import RetryReason
from router.types import EngineId

MOST_BREAKS = 2  # of the connection, for one request


class Retries:
    """One request's tries. most: other engines that may be tried after the first."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._breaks = 0
        self.tried: list[EngineId] = []
        """Engines that the request has been sent to, in their order; the next choice leaves them out."""

    def began(self, engine: EngineId) -> None:
        """The request goes to an engine."""
        self.tried.append(engine)

    def failed(self, reason: RetryReason, *, answer_begun: bool) -> bool:
        """The last try failed; whether there may be another one. answer_begun: the client has seen something."""
        self._breaks += reason is RetryReason.RESET
        return not answer_begun and self._breaks < MOST_BREAKS and len(self.tried) <= self._most
