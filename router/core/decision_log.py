"""The last decisions with their outcomes, for people who ask why a request went where it did.

The log is a ring of decisions, with a map from each request id to the tries of its newest request. A decision stays as
it is while its request is in flight. When the request is over, the decision is packed: its scores become one array of
floats, and what only policies and indexes needed is dropped. Opening an entry costs one store, and closing it some
microseconds.

Memory: at most `capacity` decisions of about 3 KB each (16 engines with 5 terms, 3 shadows; 0.6 KB with one engine),
besides those whose requests are in flight and are in memory anyway. If a decision has more engines than ENGINES, the
cheapest are kept.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Sequence
from typing import NamedTuple

from router.types import PLAIN, Decision, Ending, EngineId, Outcome, Stop, Unit

ENGINES = 16
"""At most so many engines have their scores kept, for each decision."""
NAME_CHARS = 64
"""Names that clients choose are cut to this many characters."""


class LoggedOutcome(NamedTuple):
    """How one try ended. A field is None where the gateway did not see its value."""

    ending: Ending
    latency_s: float
    ttft_s: float | None
    prompt_tokens: int | None
    cached_tokens: int | None
    output_tokens: int | None
    stop: Stop
    tool: str | None


class LoggedShadow(NamedTuple):
    """The engine that a policy which did not decide would have chosen."""

    policy: str
    engine: EngineId
    regret_s: float | None


class LoggedDecision(NamedTuple):
    """One packed decision.

    scores: one row for each of `engines`: total, predicted_s, hit_tokens and slowness (nan stands for None), then one
    value for each of `terms`. candidates: the number of engines that could have been chosen.
    """

    request_id: str
    route: str
    model: str
    session: str | None
    conversation: str | None
    stream: bool
    at_s: float
    policy: str
    reason: str
    fallback: str | None
    engine: EngineId
    tried: tuple[EngineId, ...]
    prompt_tokens: float
    output_tokens: float
    predicted_s: float | None
    engines: tuple[EngineId, ...]
    candidates: int
    terms: tuple[str, ...]
    scores: array[float]
    unit: Unit
    shadows: tuple[LoggedShadow, ...]
    result: LoggedOutcome | None

    def describe(self, now: float) -> dict[str, object]:
        """Return the decision as people read it, in JSON types only. now: on the clock of the decisions."""
        scores = self._scores()
        return {
            "request_id": self.request_id,
            "route": self.route,
            "model": self.model,
            "session": self.session,
            "conversation": self.conversation,
            "stream": self.stream,
            "age_s": round(now - self.at_s, 6),
            "policy": self.policy,
            "reason": self.reason,
            "fallback": self.fallback,
            "engine": self.engine,
            "tried": list(self.tried),
            "prompt_tokens": _number(self.prompt_tokens),
            "expected_output_tokens": _number(self.output_tokens),
            "predicted_s": _number(self.predicted_s),
            "unit": self.unit.value,
            "engines": scores,
            "engines_left_out": self.candidates - len(scores),
            "shadows": [self._shadow(shadow) for shadow in self.shadows],
            "outcome": self._outcome(),
        }

    def _scores(self) -> list[dict[str, object]]:
        """The score of each engine, the cheapest first and the chosen engine first among equals."""
        width, ranked = PLAIN + len(self.terms), []
        for place, engine in enumerate(self.engines):
            values = [_number(value) for value in self.scores[place * width : (place + 1) * width]]
            total, predicted_s, hit_tokens, slowness, *terms = values
            score = {
                "engine": engine,
                "chosen": engine == self.engine,
                "hit_tokens": hit_tokens,
                "terms": dict(zip(self.terms, terms, strict=True)),
                "slowness": slowness,
                "predicted_s": predicted_s,
                "total": total,
            }
            ranked.append((self.scores[place * width], engine != self.engine, score))
        return [score for _, _, score in sorted(ranked, key=lambda each: each[:2])]

    def _shadow(self, shadow: LoggedShadow) -> dict[str, object]:
        agrees, regret_s = shadow.engine == self.engine, _number(shadow.regret_s)
        return {"policy": shadow.policy, "engine": shadow.engine, "agrees": agrees, "regret_s": regret_s}

    def _outcome(self) -> dict[str, object] | None:
        if self.result is None:
            return None
        r, predicted_s = self.result, self.predicted_s
        error = (r.latency_s - predicted_s) / predicted_s if r.ending is Ending.OK and predicted_s else None
        return {
            "ending": r.ending.value,
            "latency_s": _number(r.latency_s),
            "ttft_s": _number(r.ttft_s),
            "prompt_tokens": r.prompt_tokens,
            "cached_tokens": r.cached_tokens,
            "output_tokens": r.output_tokens,
            "stop": r.stop.word,
            "tool": r.tool,
            "prediction_error_ratio": _number(error),
        }


class DecisionLog:
    """The last `capacity` decisions; a log of capacity 0 keeps none."""

    def __init__(self, capacity: int) -> None:
        self._ring: list[Decision | LoggedDecision | None] = [None] * capacity
        """Decisions at the place of their booking's serial number, modulo the capacity. Serial numbers have no gaps."""
        self._tries: dict[str, list[int]] = {}
        """The bookings of the newest request of each id; all of them are in the ring."""
        self._last = 0

    def open(self, decision: Decision) -> None:
        """A request was dispatched. The booking of each decision must be higher than that of the last one."""
        if not self._ring:
            return
        place = decision.booking % len(self._ring)
        self._drop(self._ring[place], decision.booking - len(self._ring))
        self._ring[place] = decision
        self._last = decision.booking
        name = decision.request.request_id
        known = self._tries.get(name)
        if known is None or not decision.tried:  # ids may be used again, and then belong to the newest request
            self._tries[name] = [decision.booking]
        else:
            known.append(decision.booking)

    def close(self, decision: Decision, outcome: Outcome) -> None:
        """The request is over. Nothing happens if its decision is not in the log any more."""
        if self._ring and self._ring[place := decision.booking % len(self._ring)] is decision:
            self._ring[place] = pack(decision, outcome)

    def find(self, request_id: str) -> list[LoggedDecision]:
        """The tries of the newest request of that id, in their order; empty if the log holds none."""
        return [self._entry(booking) for booking in self._tries.get(request_id, ())]

    def newest(self, limit: int) -> list[LoggedDecision]:
        """The last decisions, at most `limit`, newest first."""
        bookings = range(self._last, max(0, self._last - len(self._ring), self._last - limit), -1)
        return [self._entry(booking) for booking in bookings if self._ring[booking % len(self._ring)] is not None]

    def _entry(self, booking: int) -> LoggedDecision:
        entry = self._ring[booking % len(self._ring)]
        assert entry is not None, "bookings in `_tries` are in the ring"
        return entry if isinstance(entry, LoggedDecision) else pack(entry, None)

    def _drop(self, old: Decision | LoggedDecision | None, booking: int) -> None:
        if old is None:
            return
        name = old.request_id if isinstance(old, LoggedDecision) else old.request.request_id
        tries = self._tries.get(name)
        if tries and tries[0] == booking:
            del tries[0]
            if not tries:
                del self._tries[name]


def pack(decision: Decision, outcome: Outcome | None) -> LoggedDecision:
    """Pack a decision and, if its request is over, the outcome. Raises nothing."""
    request, scores, engines = decision.request, decision.scores, decision.scores.engines
    places: Sequence[int] = range(len(scores))
    if len(places) > ENGINES:
        costs = [(total, engines[place] != decision.engine, place) for place, total in enumerate(scores.totals)]
        places = [place for _, _, place in sorted(costs)[:ENGINES]]
        engines = [engines[place] for place in places]
    return LoggedDecision(
        request.request_id,
        request.route,
        request.model[:NAME_CHARS],
        request.session and request.session[:NAME_CHARS],
        decision.conversation,
        request.stream,
        decision.dispatched_s,
        decision.policy,
        decision.reason,
        decision.fallback,
        decision.engine,
        decision.tried,
        decision.prompt_tokens,
        decision.output_tokens,
        decision.predicted_s,
        tuple(engines),
        scores.eligible,
        scores.terms,
        scores.table(places),
        scores.unit,
        tuple([LoggedShadow(shadow.policy, shadow.engine, shadow.regret_s) for shadow in decision.shadows]),
        None if outcome is None else _result(decision, outcome),
    )


def _result(decision: Decision, outcome: Outcome) -> LoggedOutcome:
    first_s = outcome.first_token_s
    return LoggedOutcome(
        outcome.ending,
        outcome.done_s - decision.dispatched_s,
        None if first_s is None else first_s - decision.dispatched_s,
        outcome.prompt_tokens,
        outcome.cached_tokens,
        outcome.output_tokens,
        outcome.stop,
        outcome.tool,
    )


def _number(value: float | None) -> float | None:
    """Round to microseconds. Numbers that are not finite become None, because JSON has none."""
    return round(value, 6) if value is not None and math.isfinite(value) else None
