"""The contract of a policy: how it scores the engines for a request, and which events of the request it receives.

A choice has three steps. `core` decides which engines are eligible, the policy gives each candidate a total, and `pick`
takes the lowest. A policy does not keep the load of engines (the fleet does), and it keeps nothing of its last call:
what it needs later is in the decision. So several policies can score the same candidates side by side while one of them
decides.
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
    """One request that is to be placed, with everything besides the candidates that the choice may depend on."""

    request: ParsedRequest
    prompt_tokens: float
    """Length of the prompt; an estimate unless the prompt came as token ids."""
    output_tokens: float
    """Expected length of the answer."""
    now: float
    """Time of the decision, seconds on the router's clock."""
    chance: float
    """A number in [0, 1) that the router's generator drew uniformly for this decision. A policy may use no other
    chance."""
    longest_tokens: float = 0.0
    """The longest prefix that any candidate is expected to hold."""
    tokens_per_unit: float = 1.0
    """Tokens that one unit of the prompt is taken for: 1 for token ids, a learned ratio for the bytes of text."""
    conversation: str | None = None
    """The id of the session that the request belongs to (`core.sessions`); None: it belongs to none."""
    excess_tokens: Mapping[EngineId, float] = MappingProxyType({})
    """By how many tokens the session would not fit the cache of an engine, beside what other sessions want of it
    (`core.working_set`); engines where it fits are left out."""
    held_s: float = 0.0
    """For how long the request was held before this choice (`core.holding`)."""


class Totals(NamedTuple):
    """A policy's totals of the candidates, in their order. The engine with the lowest total gets the request."""

    totals: Sequence[float]
    unit: Unit = Unit.RANK
    predicted_s: Sequence[float] | None = None
    """Predicted end-to-end latencies, seconds; None from policies that predict none."""
    terms: Mapping[str, Sequence[float]] = MappingProxyType({})
    """The parts of the totals by name, in the unit of the totals."""


@dataclass(frozen=True)
class NoOptions:
    """The options of a policy that has none."""


O = TypeVar("O")  # noqa: E741 -- the options of a policy


class Policy(ABC, Generic[O]):
    """A policy has one question, `choose`, which changes nothing. All other methods are optional.

    The events come in the order of a request's life: `dispatched`, `first_token` (of streamed requests only), and
    `learn`, exactly once whatever the ending. A policy receives the events of all requests, also of those that another
    policy placed. `forget` says that an engine has left.
    """

    name: ClassVar[str]
    Options: ClassVar[type[Any]] = NoOptions
    """A frozen dataclass of options (`options.option`). It stands beside the formula that uses them."""

    def __init__(self, options: O | None = None) -> None:
        self.options: O = self.Options() if options is None else options

    @abstractmethod
    def choose(
        self, routing: RoutingContext, candidates: Sequence[Candidate], also: Collection[EngineId] = ()
    ) -> Scores:
        """The scores of the candidates; the lowest total gets the request. A policy may leave out candidates that are
        not worth weighing, but none of the engines in `also`. `candidates` is not empty."""

    def dispatched(self, decision: Decision) -> None:
        """The request is sent to `decision.engine`."""

    def first_token(self, decision: Decision, now: float) -> None:
        """The first token of a streamed request was seen at `now`."""

    def learn(self, decision: Decision, released: ReleasedBooking, outcome: Outcome) -> None:
        """The request is over. A policy may learn latencies only from requests that ended with Ending.OK."""

    def forget(self, engine: EngineId) -> None:
        """The engine has left the fleet."""

    def trouble(self, now: float) -> str | None:  # noqa: ARG002
        """Why another policy must decide now, as one word for the metrics; None: this policy may decide. It receives
        all events meanwhile, each with its own score, so that it can recover."""
        return None

    def dump(self, now: float) -> SavedState:
        """What the policy has learned, for `load`: JSON types, finite numbers, times as ages. Empty if there is nothing
        to keep."""
        del now
        return {}

    def load(self, state: SavedFields, saved_s: float, names: Mapping[str, EngineId]) -> None:
        """Take up what was dumped at `saved_s`, a time on the present clock. names: the present engines by the names
        that they had then. Raises SnapshotError for a state that does not fit. The policy may then be left half
        changed, and must not be used before it has loaded another state."""

    def describe(self, engine: EngineId) -> dict[str, object]:
        """What was learned about the engine, for people to read; JSON types only."""
        del engine
        return {}


class TotalsPolicy(Policy[O]):
    """A policy that only gives each candidate a total (`weigh`); this class makes the scores of the totals."""

    @abstractmethod
    def weigh(self, routing: RoutingContext, candidates: Sequence[Candidate]) -> Totals:
        """One total for each candidate. `candidates` is not empty."""

    def choose(
        self,
        routing: RoutingContext,
        candidates: Sequence[Candidate],
        also: Collection[EngineId] = (),  # noqa: ARG002 -- all candidates are weighed
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
    """The score with the lowest total. `chance` splits exact ties evenly. Raises ValueError if a total is not a
    number."""
    totals = scores.totals
    lowest = min(totals)
    if math.isnan(sum(totals)) or not math.isfinite(lowest):
        raise ValueError("the policy gave a cost that is not a number")
    if totals.count(lowest) == 1:
        return scores[totals.index(lowest)]
    tied = [place for place, total in enumerate(totals) if total == lowest]
    return scores[tied[int(chance * len(tied))]]
