from __future__ import annotations

import math
import random
from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any

import pytest

from router.core.experiment import Experiment, session_point
from router.core.options import RoutingOptions
from router.core.router import Router
from router.errors import ConfigError
from router.policies import table as policies
from router.policies.base import NoOptions, Policy, RoutingContext, Totals, TotalsPolicy
from router.policies.least_loaded import LeastLoaded
from router.policies.table import FALLBACKS
from router.types import Candidate, Decision, Ending, EngineId, Outcome, ReleasedBooking, Scores, Unit
from tests.support.virtual_fleet import answered, ask_for, router_with

E0, E1 = EngineId("e0"), EngineId("e1")


class Preferring(TotalsPolicy[NoOptions]):
    """A policy that prefers one engine, and keeps the events that it hears of."""

    def __init__(self, name: str, preferred: str, *, seconds: bool = True) -> None:
        super().__init__()
        self.name, self.preferred, self.seconds = name, preferred, seconds  # type: ignore[misc]
        self.unit = Unit.SECONDS if seconds else Unit.RANK
        self.events: list[tuple[str, Decision]] = []
        self.forgotten: list[EngineId] = []

    def weigh(self, routing: RoutingContext, candidates: Sequence[Candidate]) -> Totals:
        totals = [1.0 if view.engine == self.preferred else 3.5 for view, _ in candidates]
        return Totals(totals, self.unit, totals if self.seconds else None, {"own": totals})

    def dispatched(self, decision: Decision) -> None:
        self.events.append(("dispatched", decision))

    def first_token(self, decision: Decision, now: float) -> None:
        self.events.append(("first_token", decision))

    def learn(self, decision: Decision, released: ReleasedBooking, outcome: Outcome) -> None:
        self.events.append(("learn", decision))

    def forget(self, engine: EngineId) -> None:
        self.forgotten.append(engine)

    @property
    def event_names(self) -> list[str]:
        return [name for name, _ in self.events]


class Failing(Preferring):
    """A policy that raises in the event or question `where`, or whose totals are `nan` or too few (`short`), or whose
    scores are not those of all candidates (`others`)."""

    def __init__(self, name: str, where: str) -> None:
        super().__init__(name, "e0")
        self.where = where

    def weigh(self, routing: RoutingContext, candidates: Sequence[Candidate]) -> Totals:
        if self.where == "choose":
            raise RuntimeError
        found = super().weigh(routing, candidates)
        if self.where == "nan":
            return found._replace(totals=[math.nan] * len(candidates))
        return found._replace(totals=found.totals[:1]) if self.where == "short" else found

    def choose(
        self, routing: RoutingContext, candidates: Sequence[Candidate], also: Collection[EngineId] = ()
    ) -> Scores:
        if self.where == "others":
            candidates = candidates[:1]
        return super().choose(routing, candidates, also)

    def dispatched(self, decision: Decision) -> None:
        assert self.where != "dispatched"

    def first_token(self, decision: Decision, now: float) -> None:
        assert self.where != "first_token"

    def learn(self, decision: Decision, released: ReleasedBooking, outcome: Outcome) -> None:
        assert self.where != "learn"


def router_over(*members: Policy[Any], policy: str, shadow: Sequence[str] = (), engines: int = 2) -> Router:
    """A router whose policies are `members`, each found by its name."""
    known = {member.name: member for member in members}
    return router_with(engines, policy, shadow=tuple(shadow), create=known.__getitem__)


def serve(router: Router, now: float, *, session: str | None = None) -> Decision:
    decision = router.route(replace(ask_for(1, 2), session=session), now)
    router.first_token(decision, now + 0.1)
    router.complete(decision, answered(now + 0.5))
    return decision


def test_a_shadow_is_told_of_every_request_in_its_own_scores_and_never_heeded() -> None:
    lead, other = Preferring("lead", "e0"), Preferring("other", "e1")
    router = router_over(lead, other, policy="lead", shadow=["other"])
    decision = serve(router, 0.0)
    assert (decision.engine, decision.policy, decision.predicted_s) == (E0, "lead", 1.0)
    assert [(o.policy, o.engine, o.regret_s) for o in decision.shadows] == [("other", E1, 2.5)]
    assert lead.event_names == other.event_names == ["dispatched", "first_token", "learn"]
    assert all(seen is decision for _, seen in lead.events)
    for _, seen in other.events:
        assert (seen.engine, seen.booking, seen.policy) == (E0, decision.booking, "other")
        assert (seen.score.total, seen.predicted_s) == (3.5, 3.5)


def test_agreement_and_regret_are_counted_for_each_shadow() -> None:
    router = router_over(
        Preferring("lead", "e0"),
        Preferring("same", "e0"),
        Preferring("other", "e1"),
        policy="lead",
        shadow=["same", "other"],
    )
    for n in range(4):
        serve(router, float(n))
    found = {names: (t.decisions, t.agreed, t.regret_s) for names, t in router._experiment.agreements.items()}
    assert found == {("lead", "same"): (4, 4, 0.0), ("lead", "other"): (4, 0, 10.0)}


def test_scores_that_are_no_seconds_count_as_no_regret() -> None:
    router = router_over(
        Preferring("lead", "e0", seconds=False), Preferring("other", "e1"), policy="lead", shadow=["other"]
    )
    decision = serve(router, 0.0)
    (shadow,) = decision.shadows
    assert (shadow.engine, shadow.regret_s) == (E1, None)
    agreement = router._experiment.agreements["lead", "other"]
    assert (agreement.decisions, agreement.agreed, agreement.regret_s) == (1, 0, None)


@pytest.mark.parametrize("where", ["choose", "nan", "short", "others", "dispatched", "first_token", "learn"])
def test_a_shadow_that_fails_is_counted_and_touches_nothing(where: str, caplog: pytest.LogCaptureFixture) -> None:
    router = router_over(Preferring("lead", "e1"), Failing("wrong", where), policy="lead", shadow=["wrong"])
    decisions = [serve(router, float(n)) for n in range(5)]
    assert {(d.engine, d.reason) for d in decisions} == {(E1, "lowest_cost")}
    faults = {arm.name: arm.faults for arm in router._experiment.arms}
    assert faults == {"lead": 0, "wrong": 5}
    assert router.in_flight == 0
    assert sum("policy wrong failed in" in record.message for record in caplog.records) == 3  # the 1st, 2nd and 4th


@pytest.mark.parametrize("where", ["choose", "nan", "short", "others"])
def test_a_decider_that_fails_is_counted_and_nobody_is_compared_with_it(where: str) -> None:
    router = router_over(Failing("wrong", where), Preferring("other", "e1"), policy="wrong", shadow=["other"])
    decision = serve(router, 0.0)
    assert (decision.policy, decision.reason, decision.fallback) == ("wrong", "fault", "lmetric")
    assert decision.shadows[0].regret_s is None
    assert router._experiment.agreements == {}
    assert router.status().faults == 1


class Troubled(Preferring):
    """A policy that is in trouble for as long as it has a reason."""

    reason: str | None = "cold"

    def trouble(self, now: float) -> str | None:
        return self.reason


def test_a_decider_in_trouble_is_not_heeded_and_learns_in_its_own_scores() -> None:
    lead, other = Troubled("lead", "e1"), Preferring("other", "e1")
    router = router_over(lead, other, policy="lead", shadow=["other"])
    router.route(ask_for(7), 0.0, exclude={E0})
    decision = serve(router, 0.0)
    assert (decision.policy, decision.reason, decision.fallback) == ("lead", "cold", "lmetric")
    assert (decision.engine, decision.predicted_s) == (E0, None)
    assert decision.scores[0].total == 128.0
    assert [(o.policy, o.engine, o.regret_s) for o in decision.shadows] == [("lead", E1, None), ("other", E1, None)]
    assert router._experiment.agreements == {}
    for _, seen in lead.events[1:]:
        assert (seen.engine, seen.booking, seen.predicted_s) == (E0, decision.booking, 3.5)
    lead.reason = None
    decision = serve(router, 1.0)
    assert (decision.engine, decision.reason, decision.fallback, len(decision.shadows)) == (E1, "lowest_cost", None, 1)
    assert router._experiment.agreements["lead", "other"].agreed == 1
    assert router.status().faults == 0


def test_a_shadow_in_trouble_is_counted_as_ever() -> None:
    router = router_over(Preferring("lead", "e0"), Troubled("other", "e1"), policy="lead", shadow=["other"])
    assert serve(router, 0.0).fallback is None
    assert router._experiment.agreements["lead", "other"].decisions == 1


def test_the_least_loaded_engine_is_the_last_resort() -> None:
    stand_in = Failing("stand_in", "choose")
    experiment = Experiment(
        {"lead": Troubled("lead", "e0")}.__getitem__, (stand_in, LeastLoaded()), rng=random.Random(0)
    )
    experiment.assign({"lead": 1.0})
    router = router_with(2)
    router.route(ask_for(1), 0.0, exclude={E1})
    candidates = [Candidate(view, 0.0) for view in router._fleet.views()]
    choice = experiment.choose(RoutingContext(ask_for(2), 64.0, 64.0, 0.0, 0.0), candidates)
    assert (choice.chosen.engine, choice.reason, choice.fallback) == (E1, "cold", "least_loaded")
    assert experiment.faults == 1


@pytest.mark.parametrize("name", FALLBACKS)
def test_what_stands_in_needs_no_events_and_does_as_it_says(name: str) -> None:
    kind = policies.TABLE[name]
    for event in ("dispatched", "first_token", "learn", "forget", "trouble"):
        assert getattr(kind, event) is getattr(Policy, event)
    router = router_with(2, fallback_policy=name, lbgr_cold_samples=1)
    assert (router.route(ask_for(1), 0.0).fallback, router.status().faults) == (name, 0)


def test_a_switch_keeps_what_was_learned_and_tells_newcomers_of_new_requests_only() -> None:
    first, second, third = Preferring("first", "e0"), Preferring("second", "e1"), Preferring("third", "e1")
    router = router_over(first, second, third, policy="first", shadow=["second"])
    pending = router.route(ask_for(1), 0.0)
    router.assign({"second": 1.0})
    assert serve(router, 1.0).policy == "second"
    assert [(arm.name, arm.share) for arm in router._experiment.arms] == [("first", 0.0), ("second", 1.0)]
    router.assign({"third": 1.0}, ["first"])
    assert [(arm.name, arm.share) for arm in router._experiment.arms] == [("third", 1.0), ("first", 0.0)]
    router.complete(pending, answered(2.0))
    assert third.event_names == []
    assert first.event_names[-1] == "learn"
    assert router._experiment.lead is third
    assert serve(router, 3.0).policy == "third"
    assert third.event_names == ["dispatched", "first_token", "learn"]
    assert second.event_names == ["dispatched", "dispatched", "first_token", "learn"]


def test_an_unknown_name_changes_nothing() -> None:
    router = router_with(2, "lbgr", shadow=("lmetric",))
    before = router._experiment.arms
    for shares, shadows in (({"nobody": 1.0}, None), ({"lmetric": 1.0}, ["nobody"])):
        with pytest.raises(ConfigError, match="expected one of lbgr"):
            router.assign(shares, shadows)
    assert router._experiment.arms == before
    assert [arm.share for arm in before] == [1.0, 0.0]
    assert router.status().policy == "lbgr"


def test_kebab_names_are_the_same_policies() -> None:
    router = router_with(2, "round_robin")
    router.assign({"round-robin": 0.5, "least-loaded": 0.5}, ["power-of-two", "round_robin"])
    assert {arm.name: arm.share for arm in router._experiment.arms} == {
        "round_robin": 0.5,
        "least_loaded": 0.5,
        "power_of_two": 0.0,
    }


def test_a_split_is_drawn_by_the_routers_chance_and_all_learn() -> None:
    first, second = Preferring("first", "e0"), Preferring("second", "e1")
    router = router_over(first, second, policy="first")
    router.assign({"first": 0.8, "second": 0.2})
    decided = [serve(router, float(n)).policy for n in range(500)]
    assert 0.74 < decided.count("first") / 500 < 0.86
    assert first.event_names.count("learn") == second.event_names.count("learn") == 500
    assert set(router._experiment.agreements) == {("first", "second"), ("second", "first")}
    assert router._experiment.lead is first


def test_a_session_stays_with_one_policy_and_a_moved_share_moves_few() -> None:
    router = router_over(Preferring("first", "e0"), Preferring("second", "e1"), policy="first")

    def deciders(shares: dict[str, float]) -> dict[str, str]:
        router.assign(shares)
        found: dict[str, str] = {}
        for n in range(3 * 200):
            session = f"session {n % 200}"
            policy = serve(router, float(n), session=session).policy
            assert found.setdefault(session, policy) == policy
        return found

    before, after = deciders({"first": 0.5, "second": 0.5}), deciders({"first": 0.6, "second": 0.4})
    assert 70 < list(before.values()).count("first") < 130
    moved = [(before[s], after[s]) for s in before if before[s] != after[s]]
    assert 0 < len(moved) < 40
    assert set(moved) == {("second", "first")}


def test_a_sessions_point_is_even_and_any_text_has_one() -> None:
    points = [session_point(f"s{n}") for n in range(1000)]
    assert all(0 <= point <= 1 for point in points)
    assert 0.45 < sum(points) / 1000 < 0.55
    assert session_point("\ud800") != session_point("")


def test_one_policy_draws_nothing_so_a_seed_repeats_its_choices_with_and_without_shadows() -> None:
    def engines(**options: Any) -> list[str]:
        router = router_with(4, "lbgr", seed=3, **options)
        return [router.route(ask_for(n), n * 0.01).engine for n in range(60)]

    assert engines() == engines(shadow=("lmetric", "random", "cache_aware"))


def test_what_policies_cost_is_timed() -> None:
    ticks = iter(range(10_000))
    router = Router(RoutingOptions(shadow=("lmetric",)), rng=random.Random(0), timer=lambda: float(next(ticks)))
    router.add_engine(E0)
    router.set_health(E0, True)
    router.complete(router.route(ask_for(1), 0.0), answered(1.0))
    assert {arm.name: arm.seconds for arm in router._experiment.arms} == {"lbgr": 3.0, "lmetric": 3.0}


def test_an_engine_that_leaves_is_forgotten_by_all() -> None:
    lead, other = Preferring("lead", "e0"), Preferring("other", "e1")
    router = router_over(lead, other, policy="lead", shadow=["other"])
    router.remove_engine(E1)
    assert lead.forgotten == other.forgotten == [E1]


@pytest.mark.parametrize("policy", sorted(policies.TABLE))
@pytest.mark.parametrize("ending", [Ending.OK, Ending.CANCELLED, Ending.ENGINE_LOST])
def test_every_policy_serves_beside_every_other_without_a_fault(policy: str, ending: Ending) -> None:
    """Each is shadowed by all, through joining and leaving engines, in a split and after a switch."""
    others = tuple(sorted(set(policies.TABLE) - {policy}))
    router, rng = router_with(3, policy, shadow=others), random.Random(1)
    for n in range(40):
        if n == 15:
            router.remove_engine(E1)
        if n == 20:
            router.assign({policy: 0.5, others[0]: 0.5})
        if n == 30:
            router.add_engine(E1)
            router.set_health(E1, True)
        decision = router.route(ask_for(*rng.sample(range(9), 5), stream=n % 2 == 0), n * 0.1)
        assert len(decision.shadows) == len(others)
        for score in decision.scores:  # `decision_log.pack` and /explain rely on it
            assert list(score.terms) in (list(decision.scores[0].terms), [])
        router.first_token(decision, n * 0.1 + 0.05)
        router.complete(decision, Outcome(ending, n * 0.1 + 0.2, None, 320, 0, 10))
    assert router.status().faults == 0
    assert router.in_flight == 0
    assert len(router._experiment.agreements) <= len(policies.TABLE) ** 2


def test_lbgr_as_a_shadow_learns_as_much_as_lbgr_in_charge() -> None:
    def samples(policy: str, shadow: tuple[str, ...]) -> object:
        router = router_with(2, policy, shadow=shadow)
        for n in range(40):
            decision = router.route(ask_for(n, n + 1, stream=n % 2 == 0), n * 1.0)
            router.first_token(decision, n + 0.1)
            router.complete(decision, answered(n + 0.6, output=20, prompt=128, cached=0))
        (lbgr,) = [arm.policy for arm in router._experiment.arms if arm.name == "lbgr"]
        return lbgr.describe(E0)["samples"]

    assert samples("round_robin", ("lbgr",)) == samples("lbgr", ())
