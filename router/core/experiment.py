"""The policies side by side: for each request one decides, the others score the same candidates and are not heeded.

Every policy on the panel has a share of the decisions; a share of 0 makes it a shadow. All of them are told of every
request from its dispatch on, each with its own scores, so all learn from all traffic and any can take over warm.
What the others would have done is counted against the one that decided:

    regret = total(their choice) - total(its choice)        by the scores of the one that decided, seconds

Only policies that predict latencies have scores in seconds, so under others nothing is counted as regret. A decider
that fails (`fault`), or says that it is in trouble, loses no request: a safe policy chooses in its place, and the
decision names it and why. One in trouble keeps learning: its scores go along as an opinion. A shadow that fails is
counted. At most one seat for each policy there is; nothing here grows by traffic.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from typing import NamedTuple, ParamSpec, TypeVar

from router.policies.base import Ask, Policy, pick
from router.saved_state import Fields, State
from router.types import Candidate, Decision, EngineId, Lookup, Opinion, Outcome, Score, Scores, Stay, Unit

logger = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")
Create = Callable[[str], Policy]
"""Makes the policy of that name, in any spelling. Raises ConfigError for an unknown one."""


@dataclass(slots=True)
class Seat:
    """One policy on the panel."""

    policy: Policy
    since: int
    """It was told of no booking up to this one."""
    share: float = 0.0
    """Of the decisions, 0 to 1."""
    faults: int = 0
    """How often it raised or gave a cost that is not a number."""
    seconds: float = 0.0
    """What its scoring and learning took, by the panel's timer."""

    @property
    def name(self) -> str:
        return self.policy.name


@dataclass(slots=True)
class Tally:
    """One policy's opinions where another decided."""

    opinions: int = 0
    agreed: int = 0
    regret_s: float | None = None
    """None until the one that decided had scores in seconds."""


class Choice(NamedTuple):
    """What the panel made of one request."""

    policy: str
    scores: Scores
    chosen: Score
    reason: str
    opinions: tuple[Opinion, ...]
    fallback: str | None

    def decision(
        self, ask: Ask, booking: int, lookup: Lookup, tried: tuple[EngineId, ...], tokens_per_unit: float
    ) -> Decision:
        return Decision(
            request=ask.request,
            engine=self.chosen.engine,
            policy=self.policy,
            reason=self.reason,
            predicted_s=self.chosen.predicted_s,
            prompt_tokens=ask.prompt_tokens,
            hit_tokens=self.chosen.hit_tokens,
            output_tokens=ask.output_tokens,
            scores=self.scores,
            booking=booking,
            dispatched_s=ask.now,
            lookup=lookup,
            tried=tried,
            opinions=self.opinions,
            fallback=self.fallback,
            tokens_per_unit=tokens_per_unit,
            longest_tokens=ask.longest_tokens,
        )


class _Made(NamedTuple):
    """A policy's answer, and its trouble if it is in any."""

    scores: Scores
    chosen: Score
    trouble: str | None


class Panel:
    """create: makes a policy. safe: choose where the decider must not, the first of them that can; none of them needs
    events, and the last never fails. timer: seconds, for what policies cost."""

    def __init__(
        self, create: Create, safe: Sequence[Policy], *, rng: random.Random, timer: Callable[[], float] = lambda: 0.0
    ) -> None:
        self._create, self._rng, self._timer = create, rng, timer
        self._safe = [Seat(policy, 0) for policy in safe[:-1]]
        self._last_resort = safe[-1]
        self._seats: dict[str, Seat] = {}
        self._deciders: list[Seat] = []
        self._last = 0  # booking
        self.tallies: dict[tuple[str, str], Tally] = {}
        """By (who decided, whose opinion)."""

    def assign(self, shares: Mapping[str, float], shadows: Sequence[str] | None = None) -> None:
        """The policies of `shares`, not empty and adding up to 1, decide from now on; `shadows` score beside them.

        Without `shadows` all others that were on the panel stay, and go on learning. Policies that stay keep what they
        have learned; new ones hear of no request that is on its way already. Raises ConfigError for an unknown name,
        and changes nothing then.
        """
        made = {name: self._create(name) for name in (*shares, *(shadows or ()))}
        before = self._seats
        seats = {} if shadows is not None else dict(before)
        for policy in made.values():
            seats[policy.name] = before.get(policy.name) or Seat(policy, self._last)
        for seat in seats.values():
            seat.share = 0.0
        for name, share in shares.items():
            seats[made[name].name].share += share
        self._seats = seats
        self._deciders = sorted((seat for seat in seats.values() if seat.share), key=lambda seat: seat.name)

    @property
    def seats(self) -> tuple[Seat, ...]:
        return tuple(self._seats.values())

    @property
    def lead(self) -> Policy:
        """The one that decides most."""
        return max(self._deciders, key=lambda seat: seat.share).policy

    @property
    def faults(self) -> int:
        """Of all policies now on the panel, and of those that stand in."""
        return sum(seat.faults for seat in (*self._seats.values(), *self._safe))

    # --- the question -------------------------------------------------------------------------------------------

    def choose(self, ask: Ask, candidates: Sequence[Candidate]) -> Choice:
        """Who gets the request, and what every policy thought of it. Changes nothing but the timer's and the faults'
        counts."""
        decider = self._draw(ask)
        made = self._try(decider, propose, decider.policy, ask, candidates)
        if made is None or made.trouble is not None:
            fallback, scores, chosen = self._stand_in(decider, ask, candidates)
            reason = "fault" if made is None or made.trouble is None else made.trouble
        else:
            fallback, scores, chosen = None, made.scores, made.chosen
            reason = "lowest_cost" if len(candidates) > 1 else "only_engine"
        opinions: tuple[Opinion, ...] = ()
        if len(self._seats) > 1:
            costs = scores if scores.unit is Unit.SECONDS and fallback is None else None
            others = [seat for seat in self._seats.values() if seat is not decider]
            found = [self._try(seat, judge, seat.policy, ask, candidates, chosen, costs) for seat in others]
            opinions = tuple([opinion for opinion in found if opinion is not None])
        if made is not None and fallback is not None:
            own = Opinion(decider.name, made.chosen.engine, None, made.scores, made.scores.find(chosen.engine))
            opinions = (own, *opinions)
        return Choice(decider.name, scores, chosen, reason, opinions, fallback)

    def _draw(self, ask: Ask) -> Seat:
        """Who decides: by chance, or, so that a session stays with one policy, by the session's name."""
        if len(self._deciders) == 1:
            return self._deciders[0]
        session = ask.request.session
        point = self._rng.random() if session is None else spread(session)
        for seat in self._deciders:
            point -= seat.share
            if point < 0:
                return seat
        return self._deciders[-1]

    def _stand_in(self, decider: Seat, ask: Ask, candidates: Sequence[Candidate]) -> tuple[str, Scores, Score]:
        """(who chooses in the decider's place, all scores, the winner)."""
        for seat in self._safe:
            if seat.name != decider.name:
                made = self._try(seat, choose, seat.policy, ask, candidates)
                if made is not None:
                    return seat.name, *made
        return self._last_resort.name, *choose(self._last_resort, ask, candidates)

    # --- events -------------------------------------------------------------------------------------------------

    def dispatched(self, decision: Decision) -> None:
        self._last = decision.booking
        if decision.fallback is None:
            self._count(decision)
        for seat, told in self._audience(decision):
            self._try(seat, seat.policy.dispatched, told)

    def first_token(self, decision: Decision, now: float) -> None:
        for seat, told in self._audience(decision):
            self._try(seat, seat.policy.first_token, told, now)

    def learn(self, decision: Decision, stay: Stay, outcome: Outcome) -> None:
        for seat, told in self._audience(decision):
            self._try(seat, seat.policy.learn, told, stay, outcome)

    def forget(self, engine: EngineId) -> None:
        for seat in self._seats.values():
            self._try(seat, seat.policy.forget, engine)

    def dump(self, now: float) -> State:
        """What the policies learned, by their names."""
        learned = {seat.name: seat.policy.dump(now) for seat in self._seats.values()}
        return {name: state for name, state in learned.items() if state}

    def load(self, state: Fields, saved_s: float, names: Mapping[str, EngineId]) -> None:
        """As `Policy.load`, for those on the panel that were on it then."""
        for seat in self._seats.values():
            if seat.name in state:
                seat.policy.load(state.fields(seat.name), saved_s, names)

    def _audience(self, decision: Decision) -> Iterator[tuple[Seat, Decision]]:
        """Everyone who knows of the request, with the decision as each of them saw it."""
        opinions = {opinion.policy: opinion for opinion in decision.opinions}
        for seat in self._seats.values():
            if decision.booking > seat.since:
                opinion = opinions.get(seat.name)
                yield seat, decision if opinion is None else _as_seen(opinion, decision)

    def _count(self, decision: Decision) -> None:
        for opinion in decision.opinions:
            tally = self.tallies.setdefault((decision.policy, opinion.policy), Tally())
            tally.opinions += 1
            tally.agreed += opinion.engine == decision.engine
            if opinion.regret_s is not None:
                tally.regret_s = (tally.regret_s or 0.0) + opinion.regret_s

    def _try(self, seat: Seat, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T | None:
        """A policy at work, whose failure must not become the request's: None. Its time and its faults are noted."""
        begun = self._timer()
        try:
            return work(*args, **kwargs)
        except Exception:
            self._fault(seat, getattr(work, "__name__", "an event"))
            return None
        finally:
            seat.seconds += self._timer() - begun

    def _fault(self, seat: Seat, where: str) -> None:
        seat.faults += 1
        if seat.faults & (seat.faults - 1) == 0:  # the 1st, 2nd, 4th, ...: one that always fails must not fill the log
            logger.exception("policy %s failed in %s (%d faults so far)", seat.name, where, seat.faults)


def propose(policy: Policy, ask: Ask, candidates: Sequence[Candidate]) -> _Made:
    """As `choose`, and what the policy thinks of it."""
    return _Made(*choose(policy, ask, candidates), policy.trouble(ask.now))


def choose(policy: Policy, ask: Ask, candidates: Sequence[Candidate]) -> tuple[Scores, Score]:
    """A policy's scores and its choice. Raises ValueError for scores that are no numbers or not the candidates'."""
    scores = policy.choose(ask, candidates)
    if not isinstance(scores, Scores):
        scores = Scores(scores, policy.unit)
        if scores.engines != [view.engine for view, _ in candidates]:
            raise ValueError("the scores are not those of the candidates")
    return scores, pick(scores, ask.chance)


def judge(policy: Policy, ask: Ask, candidates: Sequence[Candidate], chosen: Score, costs: Scores | None) -> Opinion:
    """What a policy makes of another's choice. costs: the other's scores, if they are seconds. Raises as `choose`."""
    scores, own = choose(policy, ask, candidates)
    regret_s = None if costs is None else costs.find(own.engine).total_s - chosen.total_s
    return Opinion(policy.name, own.engine, regret_s, scores, scores.find(chosen.engine))


def spread(session: str) -> float:
    """A session's point in [0, 1): the same in every process."""
    digest = blake2b(session.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little") / 2**64


def _as_seen(opinion: Opinion, decision: Decision) -> Decision:
    """The decision in the scores of a policy that did not make it."""
    predicted_s = opinion.chosen.predicted_s
    return replace(decision, policy=opinion.policy, scores=opinion.scores, predicted_s=predicted_s, opinions=())
