"""Which engines fail, what that adds to the cost of asking them, and which of them get no requests for a while.

Failing is fast, and an engine that is asked again and again because it is never busy would lose most requests of a
fleet. So every failure of an engine counts here:

    r <- r + g w (1 - r)      a failure of weight w
    r <- r - g r              an answer; besides, r halves every HALF_LIFE_S, because who costs more is asked less
    odds = r / (1 - r)        tries expected to fail before one succeeds: what `lbgr` multiplies its prediction by

An engine is left out (ejected) when the weights of its failures add up to STREAK without an answer in between, or when
r is beyond MOST_RATE after RATE_OUTCOMES outcomes. It is left out for BASE_S, and for twice as long each time that it
fails again on its return, up to MOST_S. Then it returns, and so does an engine whose health has returned. A returned
engine, and one that joins a running fleet, may have one request at a time, and one more for each answer, until that is
more than the others have. So its share grows smoothly, and a single request finds out whether it fails.

The weight of a failure says how likely it is the engine's and not the request's. A broken connection or a timeout
before the first byte counts 1. An engine that answers with an error counts DOUBT until another engine has answered the
same request, and then 1: a client whose requests fail everywhere takes no engine out. If all engines that could get a
request are left out, none of them is: the last one always gets requests.

Nothing is kept of engines that do not fail.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from router.types import Candidate, Decision, Ending, EngineId, Outcome

log = logging.getLogger("leafcutter.reliability")

GAIN = 0.1  # g
HALF_LIFE_S, FADE_S = 30.0, 1.0  # the rates are brought up to date so often
STREAK = 2.0
MOST_RATE, RATE_OUTCOMES = 0.5, 10
DOUBT, LATE = 0.25, 0.5  # the weights of an error that may be the request's own, and of a timeout after the first token
BASE_S, MOST_S = 2.0, 60.0
SPARE = 4  # a returned engine has its full share when it may have so many more requests than twice the others' mean
FORGOTTEN = 0.01  # the rate from which on an engine counts as one that does not fail


@dataclass(slots=True)
class _Record:
    """What is remembered of an engine that has failed or has returned."""

    rate: float = 0.0
    outcomes: int = 0
    streak: float = 0.0
    doubted: int = 0
    """Errors of the engine that another engine may still show to be its own."""
    ejections: int = 0
    """In a row: since it last had its full share."""
    until_s: float = 0.0
    """It gets nothing until then."""
    answers: int = 0
    """Since its return."""


class Reliability:
    """All engines. Times are seconds on the clock of the decisions."""

    def __init__(self) -> None:
        self._records: dict[EngineId, _Record] = {}
        self._limited: dict[EngineId, _Record] = {}
        """The engines that are left out or that have returned and do not have their full share yet."""
        self._known: set[EngineId] = set()
        """The engines that have been healthy before, or that joined later."""
        self._now = self._faded_s = 0.0
        self.ejections: dict[EngineId, int] = {}
        """How often each engine has been left out so far."""

    # --- what happened ------------------------------------------------------------------------------------------

    def learn(self, decision: Decision, outcome: Outcome) -> Collection[EngineId]:
        """A request is over. Return the engines whose odds may have changed."""
        self._now = outcome.done_s
        weight = 0.0 if outcome.ending is Ending.OK else _weight(outcome)
        if not (self._records or weight):
            return ()
        known = list(self._records)
        if weight:
            self._failed(decision.engine, weight, outcome.done_s)
        elif outcome.ending is Ending.OK:
            self._answered(decision)
        self._fade(outcome.done_s)
        return known if decision.engine in known else [*known, decision.engine]

    def healthy(self, engine: EngineId) -> None:
        """The engine has become healthy. Unless it was there at the start and this is the first time, it begins slowly:
        it may have restarted, or is new."""
        if engine in self._known:
            record = self._records[engine] = self._limited[engine] = _Record()
            record.until_s = self._now
        self._known.add(engine)

    def joins(self, engine: EngineId) -> None:
        """The engine joins a fleet that has served requests, and will begin slowly when it becomes healthy."""
        self._known.add(engine)

    def forget(self, engine: EngineId) -> None:
        for each in (self._records, self._limited, self.ejections):
            each.pop(engine, None)
        self._known.discard(engine)

    def _answered(self, decision: Decision) -> None:
        for engine in decision.tried:  # another one could answer what these could not
            record = self._records.get(engine)
            if record is not None and record.doubted:
                record.doubted -= 1
                self._failed(engine, 1.0 - DOUBT, decision.dispatched_s)
        record = self._records.get(decision.engine)
        if record is None:
            return
        record.rate -= GAIN * record.rate
        record.outcomes += 1
        record.streak, record.doubted = 0.0, 0
        if decision.engine in self._limited:
            record.answers += decision.dispatched_s >= record.until_s

    def _fade(self, now: float) -> None:
        """Let the rates of all engines fall with time."""
        if now - self._faded_s < FADE_S:
            return
        kept = 0.5 ** ((now - self._faded_s) / HALF_LIFE_S)
        self._faded_s = now
        for engine, record in list(self._records.items()):
            record.rate *= kept
            if record.rate < FORGOTTEN and engine not in self._limited:
                del self._records[engine]

    def _failed(self, engine: EngineId, weight: float, now: float) -> None:
        record = self._records.setdefault(engine, _Record())
        record.rate += GAIN * weight * (1.0 - record.rate)
        record.outcomes += 1
        record.streak += weight
        record.doubted += weight == DOUBT
        if engine in self._limited:
            if now >= record.until_s:  # later failures are of requests that were sent before
                self._eject(engine, record, now)
        elif record.streak >= STREAK or (record.rate > MOST_RATE and record.outcomes >= RATE_OUTCOMES):
            self._eject(engine, record, now)

    def _eject(self, engine: EngineId, record: _Record, now: float) -> None:
        for_s = min(MOST_S, BASE_S * 2.0**record.ejections)
        record.ejections += 1
        record.until_s, record.streak, record.answers, record.doubted = now + for_s, 0.0, 0, 0
        self._limited[engine] = record
        self.ejections[engine] = self.ejections.get(engine, 0) + 1
        log.warning("%s fails, and is left out for %.0f s", engine, for_s)

    # --- what follows -------------------------------------------------------------------------------------------

    @property
    def limits(self) -> bool:
        """Whether any engine gets less than its full share."""
        return bool(self._limited)

    def admit(self, candidates: Sequence[Candidate], now: float) -> list[Candidate]:
        """Those of the candidates that may get a request now: at least one of them, if there is any."""
        self._now = now
        mean = sum(view.in_flight for view, _ in candidates) / max(1, len(candidates))
        admitted, returning = [], []
        for candidate in candidates:
            view = candidate.view
            record = self._limited.get(view.engine)
            if record is not None and now >= record.until_s and record.answers + 1 > 2.0 * mean + SPARE:
                self._restore(view.engine, record)
                record = None
            if record is None or (now >= record.until_s and view.in_flight <= record.answers):
                admitted.append(candidate)
            elif now >= record.until_s:
                returning.append(candidate)
        return admitted or returning or list(candidates)

    def _restore(self, engine: EngineId, record: _Record) -> None:
        del self._limited[engine]
        record.ejections = max(0, record.ejections - 1)
        log.info("%s has its full share again", engine)

    def odds(self, engine: EngineId) -> float:
        """How many tries on the engine are expected to fail before one succeeds; at most 9."""
        record = self._records.get(engine)
        return min(9.0, record.rate / (1.0 - record.rate)) if record is not None else 0.0

    def share(self, engine: EngineId) -> str:
        """What the engine got at the latest event: `full`, `ejected` (nothing for a while) or `returning`."""
        record = self._limited.get(engine)
        return "full" if record is None else "ejected" if self._now < record.until_s else "returning"


def _weight(outcome: Outcome) -> float:
    """How much a request's end speaks against its engine."""
    if outcome.ending is Ending.ENGINE_LOST:
        return 1.0
    if outcome.ending is Ending.TIMEOUT:
        return 1.0 if outcome.first_token_s is None else LATE
    return DOUBT if outcome.ending is Ending.ENGINE_FAILED else 0.0
