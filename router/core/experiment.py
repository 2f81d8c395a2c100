"""Several policies at work at once: for each request one of them decides, and the others score the same candidates.

Every policy is an arm of the experiment with a share of the decisions. An arm with share 0 is a shadow. All arms hear
of every request from its dispatch on, each with the scores that it gave itself. So all learn from all traffic, and any
of them can take over without starting cold. The choice of every other arm is compared with that of the decider:

    regret = total(other arm's choice) - total(decider's choice)        both by the decider's scores, in seconds

Where these scores are ranks (`Unit`), no regret is counted.

No request is lost when the decider fails (reason `fault`) or says that it is in trouble: a fallback policy chooses
instead, and the decision names that policy and the reason. A decider in trouble goes on learning, because its own
choice goes along as that of a shadow. Faults of shadows are only counted. Each policy has at most one arm, so nothing
here grows with traffic.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from typing import Any, NamedTuple, ParamSpec, TypeVar

from router.core.proposal import choose, judge, overruled, propose
from router.policies.base import Policy, RoutingContext
from router.saved_state import SavedFields, SavedState
from router.types import (
    Candidate,
    Decision,
    EngineId,
    Outcome,
    PrefixExpectation,
    ReleasedBooking,
    Score,
    Scores,
    ShadowChoice,
    Unit,
)

logger = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")
Create = Callable[[str], Policy[Any]]
"""Makes a policy by its name, in any spelling. Raises ConfigError for an unknown name."""


@dataclass(slots=True)
class Arm:
    """One policy of the experiment."""

    policy: Policy[Any]
    since: int
    """The serial number of the last booking before the arm joined. It hears of later ones only."""
    share: float = 0.0
    """The share of the decisions that it makes, 0 to 1."""
    faults: int = 0
    """How often the policy raised an exception or gave a cost that is not a number."""
    seconds: float = 0.0
    """How long its scoring and learning took in all, by the experiment's timer."""

    @property
    def name(self) -> str:
        return self.policy.name


@dataclass(slots=True)
class Agreement:
    """How the choices of one policy compare with those of another policy that decided."""

    decisions: int = 0
    agreed: int = 0
    """Decisions in which both chose the same engine."""
    regret_s: float | None = None
    """The regret in all; None until the deciding policy has given scores in seconds."""


class Choice(NamedTuple):
    """The result of the experiment for one request; its fields are those of `Decision`."""

    policy: str
    scores: Scores
    chosen: Score
    reason: str
    shadows: tuple[ShadowChoice, ...]
    fallback: str | None

    def decision(
        self, routing: RoutingContext, booking: int, expectation: PrefixExpectation, tried: tuple[EngineId, ...]
    ) -> Decision:
        """The choice as a `Decision`. booking: the serial number of the booked load; 0 if nothing is booked."""
        return Decision(
            request=routing.request,
            engine=self.chosen.engine,
            policy=self.policy,
            reason=self.reason,
            predicted_s=self.chosen.predicted_s,
            prompt_tokens=routing.prompt_tokens,
            hit_tokens=self.chosen.hit_tokens,
            output_tokens=routing.output_tokens,
            scores=self.scores,
            score=self.chosen,
            booking=booking,
            dispatched_s=routing.now,
            expectation=expectation,
            tried=tried,
            shadows=self.shadows,
            fallback=self.fallback,
            tokens_per_unit=routing.tokens_per_unit,
            longest_tokens=routing.longest_tokens,
            conversation=routing.conversation,
            held_s=routing.held_s,
        )


class Experiment:
    """The policies with their shares of the decisions.

    create: makes a policy by its name. fallbacks: the policies that choose where the decider must not, tried in this
    order. None of them needs to hear of events, and the last one must never fail. timer: a clock in seconds that
    measures how long policies take.
    """

    def __init__(
        self,
        create: Create,
        fallbacks: Sequence[Policy[Any]],
        *,
        rng: random.Random,
        timer: Callable[[], float] = lambda: 0.0,
    ) -> None:
        self._create, self._rng, self._timer = create, rng, timer
        self._fallbacks = [Arm(policy, 0) for policy in fallbacks[:-1]]
        self._last_resort = fallbacks[-1]
        self._arms: dict[str, Arm] = {}
        self._deciders: list[Arm] = []
        self._last_booking = 0
        self.agreements: dict[tuple[str, str], Agreement] = {}
        """By (name of the deciding policy, name of the shadow)."""

    def assign(self, shares: Mapping[str, float], shadows: Sequence[str] | None = None) -> None:
        """From now on, the policies in `shares` decide and those in `shadows` only score.

        shares: policy names and their shares of the decisions, which must add up to 1. shadows: None keeps all other
        present policies as shadows. A policy that stays keeps what it has learned. A new one hears only of requests
        that are dispatched from now on. Raises ConfigError for an unknown name, and then changes nothing.
        """
        named = {name: self._create(name) for name in (*shares, *(shadows or ()))}
        before = self._arms
        arms = {} if shadows is not None else dict(before)
        for policy in named.values():
            arms[policy.name] = before.get(policy.name) or Arm(policy, self._last_booking)
        for arm in arms.values():
            arm.share = 0.0
        for name, share in shares.items():
            arms[named[name].name].share += share
        self._arms = arms
        self._deciders = sorted((arm for arm in arms.values() if arm.share), key=lambda arm: arm.name)

    @property
    def arms(self) -> tuple[Arm, ...]:
        return tuple(self._arms.values())

    @property
    def lead(self) -> Policy[Any]:
        """The policy with the largest share of the decisions."""
        return max(self._deciders, key=lambda arm: arm.share).policy

    @property
    def faults(self) -> int:
        """The faults of all present arms and of the fallback policies."""
        return sum(arm.faults for arm in (*self._arms.values(), *self._fallbacks))

    # --- the choice ---------------------------------------------------------------------------------------------

    def choose(self, routing: RoutingContext, candidates: Sequence[Candidate]) -> Choice:
        """Choose an engine, and compare the choice with those of the other arms.

        It changes only the counts of faults and of time.
        """
        decider = self._draw(routing)
        proposal = self._try(decider, propose, decider.policy, routing, candidates)
        if proposal is None or proposal.trouble is not None:
            fallback, scores, chosen = self._fall_back(decider, routing, candidates)
            reason = "fault" if proposal is None or proposal.trouble is None else proposal.trouble
        else:
            fallback, scores, chosen = None, proposal.scores, proposal.chosen
            reason = "lowest_cost" if len(candidates) > 1 else "only_engine"
        shadows: tuple[ShadowChoice, ...] = ()
        if len(self._arms) > 1:
            costs = decider.policy if scores.unit is Unit.SECONDS and fallback is None else None
            others = [arm for arm in self._arms.values() if arm is not decider]
            judged = [self._try(arm, judge, arm.policy, routing, candidates, chosen, scores, costs) for arm in others]
            shadows = tuple([shadow for shadow in judged if shadow is not None])
        if proposal is not None and fallback is not None:
            shadows = (overruled(decider.policy, proposal, routing, candidates, chosen), *shadows)
        return Choice(decider.name, scores, chosen, reason, shadows, fallback)

    def _draw(self, routing: RoutingContext) -> Arm:
        """Draw the arm that decides: by the session's name, so that a session stays with one policy, else by chance."""
        if len(self._deciders) == 1:
            return self._deciders[0]
        session = routing.request.session
        point = self._rng.random() if session is None else session_point(session)
        for arm in self._deciders:
            point -= arm.share
            if point < 0:
                return arm
        return self._deciders[-1]

    def _fall_back(
        self, decider: Arm, routing: RoutingContext, candidates: Sequence[Candidate]
    ) -> tuple[str, Scores, Score]:
        """Return the name of the fallback policy that chooses instead of the decider, its scores and its choice."""
        for arm in self._fallbacks:
            if arm.name != decider.name:
                chosen = self._try(arm, choose, arm.policy, routing, candidates)
                if chosen is not None:
                    return arm.name, *chosen
        return self._last_resort.name, *choose(self._last_resort, routing, candidates)

    # --- events -------------------------------------------------------------------------------------------------

    def dispatched(self, decision: Decision) -> None:
        """Tell all arms that the request was dispatched, and count which of them would have done the same."""
        self._last_booking = decision.booking
        if decision.fallback is None:
            self._count(decision)
        for arm, own_decision in self._listeners(decision):
            self._try(arm, arm.policy.dispatched, own_decision)

    def first_token(self, decision: Decision, now: float) -> None:
        """Tell all arms of the first token of a streamed request."""
        for arm, own_decision in self._listeners(decision):
            self._try(arm, arm.policy.first_token, own_decision, now)

    def learn(self, decision: Decision, released: ReleasedBooking, outcome: Outcome) -> None:
        """Tell all arms that the request is over."""
        for arm, own_decision in self._listeners(decision):
            self._try(arm, arm.policy.learn, own_decision, released, outcome)

    def forget(self, engine: EngineId) -> None:
        """Tell all arms that an engine has left the fleet."""
        for arm in self._arms.values():
            self._try(arm, arm.policy.forget, engine)

    def dump(self, now: float) -> SavedState:
        """What the policies have learned, by their names. Policies that have nothing to keep are left out."""
        learned = {arm.name: arm.policy.dump(now) for arm in self._arms.values()}
        return {name: state for name, state in learned.items() if state}

    def load(self, state: SavedFields, saved_s: float, names: Mapping[str, EngineId]) -> None:
        """Restore what was dumped, as `Policy.load` does, for the present arms that are in `state`."""
        for arm in self._arms.values():
            if arm.name in state:
                arm.policy.load(state.fields(arm.name), saved_s, names)

    def _listeners(self, decision: Decision) -> Iterator[tuple[Arm, Decision]]:
        """The arms that know of the request, each with the decision in its own scores."""
        shadows = {shadow.policy: shadow for shadow in decision.shadows} if decision.shadows else {}
        for arm in self._arms.values():
            if decision.booking > arm.since:
                shadow = shadows.get(arm.name)
                yield arm, decision if shadow is None else _as_seen(shadow, decision)

    def _count(self, decision: Decision) -> None:
        for shadow in decision.shadows:
            agreement = self.agreements.setdefault((decision.policy, shadow.policy), Agreement())
            agreement.decisions += 1
            agreement.agreed += shadow.engine == decision.engine
            if shadow.regret_s is not None:
                agreement.regret_s = (agreement.regret_s or 0.0) + shadow.regret_s

    def _try(self, arm: Arm, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T | None:
        """Let a policy do some work; return None if it raises, because the request must not fail with its policy.

        The time that the work takes and its faults are counted for the arm.
        """
        began_s = self._timer()
        try:
            return work(*args, **kwargs)
        except Exception:
            self._fault(arm, getattr(work, "__name__", "an event"))
            return None
        finally:
            arm.seconds += self._timer() - began_s

    def _fault(self, arm: Arm, where: str) -> None:
        arm.faults += 1
        if (
            arm.faults & (arm.faults - 1) == 0
        ):  # the 1st, 2nd, 4th, ...: a policy that always fails must not fill the log
            logger.exception("policy %s failed in %s (%d faults so far)", arm.name, where, arm.faults)


def session_point(session: str) -> float:
    """The point of a session in [0, 1). It is a hash, so it is the same in every process."""
    digest = blake2b(session.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little") / 2**64


def _as_seen(shadow: ShadowChoice, decision: Decision) -> Decision:
    """The decision with the scores of a policy that did not make it."""
    return replace(
        decision,
        policy=shadow.policy,
        scores=shadow.scores,
        score=shadow.chosen,
        predicted_s=shadow.chosen.predicted_s,
        shadows=(),
    )
