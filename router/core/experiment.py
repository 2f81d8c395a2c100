"""The policies side by side: for each request one decides, the others score the same candidates and are not heeded.

Every policy here is an arm with a share of the decisions; a share of 0 makes it a shadow. All of them are told of every
request from its dispatch on, each with its own scores, so all learn from all traffic and any can take over warm.
What the others would have done is counted against the one that decided:

    regret = total(their choice) - total(its choice)        by the scores of the one that decided, seconds

Where those are ranks (`Unit`), nothing is counted as regret. A decider that fails (`fault`), or says that it is in
trouble, loses no request: a safe policy chooses in its place, and the decision names it and why. One in trouble keeps
learning: its own choice goes along as a shadow's. A shadow that fails is counted. There is at most one arm for each
policy; nothing here grows by traffic.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from typing import Any, NamedTuple, ParamSpec, TypeVar

from router.policies.base import Policy, RoutingContext, pick
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
"""Makes the policy of that name, in any spelling. Raises ConfigError for an unknown one."""


@dataclass(slots=True)
class Arm:
    """One policy of the experiment."""

    policy: Policy[Any]
    since: int
    """It was told of no booking up to this one."""
    share: float = 0.0
    """Of the decisions, 0 to 1."""
    faults: int = 0
    """How often it raised or gave a cost that is not a number."""
    seconds: float = 0.0
    """What its scoring and learning took, by the experiment's timer."""

    @property
    def name(self) -> str:
        return self.policy.name


@dataclass(slots=True)
class Agreement:
    """How one policy's choices compare with those of the one that decided."""

    decisions: int = 0
    agreed: int = 0
    regret_s: float | None = None
    """None until the one that decided had scores in seconds."""


class Choice(NamedTuple):
    """What the experiment made of one request."""

    policy: str
    scores: Scores
    chosen: Score
    reason: str
    shadows: tuple[ShadowChoice, ...]
    fallback: str | None

    def decision(
        self, routing: RoutingContext, booking: int, expectation: PrefixExpectation, tried: tuple[EngineId, ...]
    ) -> Decision:
        """The choice as what travels with the request. booking: its serial number, 0 if nothing is booked."""
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
        )


class _Proposal(NamedTuple):
    """A policy's answer, and its trouble if it is in any."""

    scores: Scores
    chosen: Score
    trouble: str | None


class Experiment:
    """create: makes a policy. safe: choose where the decider must not, the first of them that can; none of them needs
    events, and the last never fails. timer: seconds, for what policies cost."""

    def __init__(
        self,
        create: Create,
        safe: Sequence[Policy[Any]],
        *,
        rng: random.Random,
        timer: Callable[[], float] = lambda: 0.0,
    ) -> None:
        self._create, self._rng, self._timer = create, rng, timer
        self._safe = [Arm(policy, 0) for policy in safe[:-1]]
        self._last_resort = safe[-1]
        self._arms: dict[str, Arm] = {}
        self._deciders: list[Arm] = []
        self._last = 0  # booking
        self.agreements: dict[tuple[str, str], Agreement] = {}
        """By (who decided, who was a shadow)."""

    def assign(self, shares: Mapping[str, float], shadows: Sequence[str] | None = None) -> None:
        """The policies of `shares`, not empty and adding up to 1, decide from now on; `shadows` score beside them.

        Without `shadows` all others that were there before stay, and go on learning. Policies that stay keep what they
        have learned; new ones hear of no request that is on its way already. Raises ConfigError for an unknown name,
        and changes nothing then.
        """
        made = {name: self._create(name) for name in (*shares, *(shadows or ()))}
        before = self._arms
        arms = {} if shadows is not None else dict(before)
        for policy in made.values():
            arms[policy.name] = before.get(policy.name) or Arm(policy, self._last)
        for arm in arms.values():
            arm.share = 0.0
        for name, share in shares.items():
            arms[made[name].name].share += share
        self._arms = arms
        self._deciders = sorted((arm for arm in arms.values() if arm.share), key=lambda arm: arm.name)

    @property
    def arms(self) -> tuple[Arm, ...]:
        return tuple(self._arms.values())

    @property
    def lead(self) -> Policy[Any]:
        """The one that decides most."""
        return max(self._deciders, key=lambda arm: arm.share).policy

    @property
    def faults(self) -> int:
        """Of all policies now on the experiment, and of those that stand in."""
        return sum(arm.faults for arm in (*self._arms.values(), *self._safe))

    # --- the question -------------------------------------------------------------------------------------------

    def choose(self, routing: RoutingContext, candidates: Sequence[Candidate]) -> Choice:
        """Who gets the request, and what every policy thought of it. Changes nothing but the timer's and the faults'
        counts."""
        decider = self._draw(routing)
        proposal = self._try(decider, propose, decider.policy, routing, candidates)
        if proposal is None or proposal.trouble is not None:
            fallback, scores, chosen = self._stand_in(decider, routing, candidates)
            reason = "fault" if proposal is None or proposal.trouble is None else proposal.trouble
        else:
            fallback, scores, chosen = None, proposal.scores, proposal.chosen
            reason = "lowest_cost" if len(candidates) > 1 else "only_engine"
        shadows: tuple[ShadowChoice, ...] = ()
        if len(self._arms) > 1:
            costs = decider.policy if scores.unit is Unit.SECONDS and fallback is None else None
            others = [arm for arm in self._arms.values() if arm is not decider]
            found = [self._try(arm, judge, arm.policy, routing, candidates, chosen, scores, costs) for arm in others]
            shadows = tuple([shadow for shadow in found if shadow is not None])
        if proposal is not None and fallback is not None:
            shadows = (_overruled(decider.policy, proposal, routing, candidates, chosen), *shadows)
        return Choice(decider.name, scores, chosen, reason, shadows, fallback)

    def _draw(self, routing: RoutingContext) -> Arm:
        """Who decides: by chance, or, so that a session stays with one policy, by the session's name."""
        if len(self._deciders) == 1:
            return self._deciders[0]
        session = routing.request.session
        point = self._rng.random() if session is None else spread(session)
        for arm in self._deciders:
            point -= arm.share
            if point < 0:
                return arm
        return self._deciders[-1]

    def _stand_in(
        self, decider: Arm, routing: RoutingContext, candidates: Sequence[Candidate]
    ) -> tuple[str, Scores, Score]:
        """(who chooses in the decider's place, all scores, the winner)."""
        for arm in self._safe:
            if arm.name != decider.name:
                found = self._try(arm, choose, arm.policy, routing, candidates)
                if found is not None:
                    return arm.name, *found
        return self._last_resort.name, *choose(self._last_resort, routing, candidates)

    # --- events -------------------------------------------------------------------------------------------------

    def dispatched(self, decision: Decision) -> None:
        self._last = decision.booking
        if decision.fallback is None:
            self._count(decision)
        for arm, told in self._audience(decision):
            self._try(arm, arm.policy.dispatched, told)

    def first_token(self, decision: Decision, now: float) -> None:
        for arm, told in self._audience(decision):
            self._try(arm, arm.policy.first_token, told, now)

    def learn(self, decision: Decision, released: ReleasedBooking, outcome: Outcome) -> None:
        for arm, told in self._audience(decision):
            self._try(arm, arm.policy.learn, told, released, outcome)

    def forget(self, engine: EngineId) -> None:
        for arm in self._arms.values():
            self._try(arm, arm.policy.forget, engine)

    def dump(self, now: float) -> SavedState:
        """What the policies learned, by their names."""
        learned = {arm.name: arm.policy.dump(now) for arm in self._arms.values()}
        return {name: state for name, state in learned.items() if state}

    def load(self, state: SavedFields, saved_s: float, names: Mapping[str, EngineId]) -> None:
        """As `Policy.load`, for those on the experiment that were on it then."""
        for arm in self._arms.values():
            if arm.name in state:
                arm.policy.load(state.fields(arm.name), saved_s, names)

    def _audience(self, decision: Decision) -> Iterator[tuple[Arm, Decision]]:
        """Everyone who knows of the request, with the decision as each of them saw it."""
        shadows = {shadow.policy: shadow for shadow in decision.shadows}
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
        """A policy at work, whose failure must not become the request's: None. Its time and its faults are noted."""
        begun = self._timer()
        try:
            return work(*args, **kwargs)
        except Exception:
            self._fault(arm, getattr(work, "__name__", "an event"))
            return None
        finally:
            arm.seconds += self._timer() - begun

    def _fault(self, arm: Arm, where: str) -> None:
        arm.faults += 1
        if arm.faults & (arm.faults - 1) == 0:  # the 1st, 2nd, 4th, ...: one that always fails must not fill the log
            logger.exception("policy %s failed in %s (%d faults so far)", arm.name, where, arm.faults)


def propose(policy: Policy[Any], routing: RoutingContext, candidates: Sequence[Candidate]) -> _Proposal:
    """As `choose`, and what the policy thinks of it."""
    return _Proposal(*choose(policy, routing, candidates), policy.trouble(routing.now))


def choose(
    policy: Policy[Any], routing: RoutingContext, candidates: Sequence[Candidate], also: Collection[EngineId] = ()
) -> tuple[Scores, Score]:
    """A policy's scores, those of `also` among them, and its choice. Raises ValueError for scores that are no numbers
    or not the candidates'."""
    scores = policy.choose(routing, candidates, also)
    if scores.eligible != len(candidates):
        raise ValueError("the scores are not those of the candidates")
    return scores, pick(scores, routing.chance)


def judge(
    policy: Policy[Any],
    routing: RoutingContext,
    candidates: Sequence[Candidate],
    chosen: Score,
    costs: Scores,
    decider: Policy[Any] | None,
) -> ShadowChoice:
    """What a policy makes of another's choice. costs: the other's scores; decider: it, if these are seconds. Raises as
    `choose`."""
    scores, own = choose(policy, routing, candidates, (chosen.engine,))
    regret_s = None
    if decider is not None:
        cost = costs.find(own.engine) or score_of(decider, own.engine, routing, candidates)
        regret_s = cost.total - chosen.total
    return ShadowChoice(policy.name, own.engine, regret_s, scores, _found(scores, chosen.engine))


def score_of(policy: Policy[Any], engine: EngineId, routing: RoutingContext, candidates: Sequence[Candidate]) -> Score:
    """The score of an engine that the policy did not think worth weighing."""
    return _found(policy.choose(routing, candidates, (engine,)), engine)


def _overruled(
    policy: Policy[Any],
    proposal: _Proposal,
    routing: RoutingContext,
    candidates: Sequence[Candidate],
    chosen: Score,
) -> ShadowChoice:
    """The choice of the policy that should have decided."""
    scores = proposal.scores
    if scores.find(chosen.engine) is None:
        scores = policy.choose(routing, candidates, (chosen.engine,))
    return ShadowChoice(policy.name, proposal.chosen.engine, None, scores, _found(scores, chosen.engine))


def _found(scores: Scores, engine: EngineId) -> Score:
    score = scores.find(engine)
    if score is None:
        raise ValueError(f"the policy gave no score of {engine}")
    return score


def spread(session: str) -> float:
    """A session's point in [0, 1): the same in every process."""
    digest = blake2b(session.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little") / 2**64


def _as_seen(shadow: ShadowChoice, decision: Decision) -> Decision:
    """The decision in the scores of a policy that did not make it."""
    return replace(
        decision,
        policy=shadow.policy,
        scores=shadow.scores,
        score=shadow.chosen,
        predicted_s=shadow.chosen.predicted_s,
        shadows=(),
    )
