"""The contract of a policy: how an engine is chosen, and what it is told of a request's life.

Eligible, score and pick are three things: `core` decides who is eligible, the policy gives each candidate a total, and
`pick` takes the lowest. A policy never owns load (the fleet does) and keeps nothing "of the last call": what it needs
later is in the decision. So several policies can score the same candidates side by side, one of them acting.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from array import array
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar, Generic, NamedTuple, TypeVar

from router.saved_state import SavedFields, SavedState
from router.types import (
    Candidate,
    Decision,
    EngineId,
    Outcome,
    ParsedRequest,
    ReleasedBooking,
    Score,
    Scores,
    Unit,
)


class RoutingContext(NamedTuple):
    """One request that is to be placed, and all that a choice may depend on besides the candidates."""

    request: ParsedRequest
    prompt_tokens: float
    """Estimated, unless the prompt came as token ids."""
    output_tokens: float
    """Expected."""
    now: float
    chance: float
    """Uniform in [0, 1), drawn for this decision by the router's generator: all the chance a policy may use."""
    longest_tokens: float = 0.0
    """The longest prefix that any candidate is expected to hold."""
    tokens_per_unit: float = 1.0
    """Tokens that a unit of the prompt was taken for: 1 for token ids, learned for text."""


class Totals(NamedTuple):
    """What a policy makes of the candidates, in their order: the lowest total gets the request."""

    totals: Sequence[float]
    unit: Unit = Unit.RANK
    predicted_s: Sequence[float] | None = None
    """Predicted end-to-end latencies, from policies that predict any."""
    terms: Mapping[str, Sequence[float]] = MappingProxyType({})
    """The parts of the totals, in their unit, by name."""


@dataclass(frozen=True)
class NoOptions:
    """Of policies that have none."""


O = TypeVar("O")  # noqa: E741 -- the options of a policy


class Policy(ABC, Generic[O]):
    """A question (`choose`) that never mutates, and four things it may be told; all but the question are optional.

    Events come in the order of a request's life: dispatched, first_token (streamed ones only), learn (exactly once,
    whatever the ending). They are told of requests that any policy placed.
    """

    name: ClassVar[str]
    Options: ClassVar[type[Any]] = NoOptions
    """A frozen dataclass of options (`options.option`), beside the formula that they belong to."""

    def __init__(self, options: O | None = None) -> None:
        self.options: O = self.Options() if options is None else options

    @abstractmethod
    def choose(
        self, routing: RoutingContext, candidates: Sequence[Candidate], also: Collection[EngineId] = ()
    ) -> Scores:
        """The scores of the candidates, or of those that are worth weighing and of `also`; the lowest total gets the
        request. `candidates` is not empty."""

    def dispatched(self, decision: Decision) -> None:
        """The request goes to `decision.engine`."""

    def first_token(self, decision: Decision, now: float) -> None:
        """A streamed request's first token was seen."""

    def learn(self, decision: Decision, released: ReleasedBooking, outcome: Outcome) -> None:
        """The request is over. Only Ending.OK may teach anything about latencies."""

    def forget(self, engine: EngineId) -> None:
        """The engine has left the fleet."""

    def trouble(self, now: float) -> str | None:  # noqa: ARG002
        """Why its scores must not be heeded now, in a word that metrics can carry; None: they may be. It is told of
        events all the same, with its own scores, and so can get better."""
        return None

    def dump(self, now: float) -> SavedState:
        """What it has learned, for `load`: JSON types, finite numbers, times as ages. Empty: it need not be kept."""
        del now
        return {}

    def load(self, state: SavedFields, saved_s: float, names: Mapping[str, EngineId]) -> None:
        """Takes up what was dumped at saved_s, on the present clock. names: the engines there are, by the names they
        had. Raises SnapshotError for what does not fit; the policy is of no use then until it has loaded again."""

    def describe(self, engine: EngineId) -> dict[str, object]:
        """What was learned, for people; JSON types only."""
        del engine
        return {}


class TotalsPolicy(Policy[O]):
    """A policy that gives each candidate a total (`weigh`); the scores are made of these here."""

    @abstractmethod
    def weigh(self, routing: RoutingContext, candidates: Sequence[Candidate]) -> Totals:
        """One total for each candidate. `candidates` is not empty."""

    def choose(
        self,
        routing: RoutingContext,
        candidates: Sequence[Candidate],
        also: Collection[EngineId] = (),  # noqa: ARG002 -- all are weighed
    ) -> Scores:
        found = self.weigh(routing, candidates)
        nan, columns = math.nan, list(found.terms.values())
        predicted = found.predicted_s or [nan] * len(candidates)
        numbers: list[float] = []
        for place, (candidate, total, predicted_s) in enumerate(zip(candidates, found.totals, predicted, strict=True)):
            numbers += total, predicted_s, candidate.hit_tokens, nan
            if columns:
                numbers += [column[place] for column in columns]
        return Scores(candidates, array("d", numbers), found.unit, tuple(found.terms))


def pick(scores: Scores, chance: float) -> Score:
    """The lowest total; exact ties are split evenly by `chance`. Raises ValueError if a total is not a number."""
    totals = scores.totals
    lowest = min(totals)
    if math.isnan(sum(totals)) or not math.isfinite(lowest):
        raise ValueError("the policy gave a cost that is not a number")
    if totals.count(lowest) == 1:
        return scores[totals.index(lowest)]
    tied = [place for place, total in enumerate(totals) if total == lowest]
    return scores[tied[int(chance * len(tied))]]
