"""The contract of a policy: how an engine is chosen, and what it is told of a request's life.

Eligible, score and pick are three things: `core` decides who is eligible, `choose` scores them, `pick` takes the
lowest. A policy never owns load (the fleet does) and keeps nothing "of the last call": what it needs later is in the
decision.
So several policies can score the same candidates side by side, one of them acting.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import ClassVar, NamedTuple

from router.config import Config
from router.saved_state import Fields, State
from router.types import Candidate, Decision, EngineId, Outcome, ParsedRequest, ReleasedBooking, Score, Scores, Unit


class RoutingContext(NamedTuple):
    """One request to be placed."""

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


class Policy(ABC):
    """A question (`choose`) that never mutates, and four things it may be told; all but the question are optional.

    Events come in the order of a request's life: dispatched, first_token (streamed ones only), learn (exactly once,
    whatever the ending). They are told of requests that any policy placed.
    """

    name: ClassVar[str]
    unit: ClassVar[Unit] = Unit.RANK
    """What its totals count."""

    def __init__(self, config: Config) -> None:
        self.config = config

    @abstractmethod
    def choose(self, routing: RoutingContext, candidates: Sequence[Candidate]) -> Scores | tuple[Score, ...]:
        """One score per candidate, in their order; the lowest `total_s` gets the request. `candidates` is not empty."""

    def dispatched(self, decision: Decision) -> None:  # noqa: B027 -- a policy that need not know ignores it
        """The request goes to `decision.engine`."""

    def first_token(self, decision: Decision, now: float) -> None:  # noqa: B027
        """A streamed request's first token was seen."""

    def learn(self, decision: Decision, released: ReleasedBooking, outcome: Outcome) -> None:  # noqa: B027
        """The request is over. Only Ending.OK may teach anything about latencies."""

    def forget(self, engine: EngineId) -> None:  # noqa: B027
        """The engine has left the fleet."""

    def trouble(self, now: float) -> str | None:  # noqa: ARG002
        """Why its scores must not be heeded now, in a word that metrics can carry; None: they may be. It is told of
        events all the same, with its own scores, and so can get better."""
        return None

    def dump(self, now: float) -> State:
        """What it has learned, for `load`: JSON types, finite numbers, times as ages. Empty: it need not be kept."""
        del now
        return {}

    def load(self, state: Fields, saved_s: float, names: Mapping[str, EngineId]) -> None:  # noqa: B027
        """Takes up what was dumped at saved_s, on the present clock. names: the engines there are, by the names they
        had. Raises SnapshotError for what does not fit; the policy is of no use then until it has loaded again."""

    def describe(self, engine: EngineId) -> dict[str, object]:
        """What was learned, for people; JSON types only."""
        del engine
        return {}


def pick(scores: Scores | Sequence[Score], chance: float) -> Score:
    """The lowest total; exact ties are split evenly by `chance`. Raises ValueError if a total is not a number."""
    totals = scores.totals_s if isinstance(scores, Scores) else [score.total_s for score in scores]
    lowest = min(totals)
    if math.isnan(sum(totals)) or not math.isfinite(lowest):
        raise ValueError("the policy gave a cost that is not a number")
    if totals.count(lowest) == 1:
        return scores[totals.index(lowest)]
    tied = [place for place, total in enumerate(totals) if total == lowest]
    return scores[tied[int(chance * len(tied))]]
