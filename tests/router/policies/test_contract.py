"""What every registered policy must do, whatever its idea."""

import json
import pickle
import random
from array import array
from collections.abc import Sequence
from dataclasses import replace
from math import nan
from typing import Any

import pytest

from router.core.options import POLICIES
from router.core.router import Router
from router.errors import ConfigError, NoEngine
from router.policies import table as policies
from router.policies.base import Policy, RoutingContext, pick
from router.policies.dynamo_kv import DynamoKv
from router.policies.least_loaded import LeastLoaded
from router.policies.round_robin import RoundRobin
from router.saved_state import SavedFields
from router.types import (
    BlockKey,
    Booking,
    Candidate,
    Decision,
    Ending,
    EngineId,
    EngineInfo,
    EngineView,
    Outcome,
    Prompt,
    ReleasedBooking,
    Scores,
    Unit,
)
from tests.support.virtual_fleet import answered, ask_for, router_with

LOAD_AWARE = sorted(set(policies.TABLE) - {"round_robin", "random"})
TIES_DRAWN = sorted(set(policies.TABLE) - {"consistent_hash"})  # whose order is the key's, never a tie
# An engine that comes back empty gets every miss until its tree has caught up; a low residual draws all it can.
SPREADS = sorted(set(policies.TABLE) - {"cache_aware", "lbgr_paper"})
every_policy = pytest.mark.parametrize("policy", sorted(policies.TABLE))


def used(policy: str, *, engines: int = 3, requests: int = 30, seed: int = 0) -> tuple[Router, list[Decision]]:
    """A router that has served some requests and has some in flight, streamed and not."""
    router, rng, kept = router_with(engines, policy, seed=seed), random.Random(5), []
    for n in range(requests):
        decision = router.route(ask_for(*(rng.randrange(40) for _ in range(6)), stream=n % 2 == 0), n * 0.1)
        router.first_token(decision, n * 0.1 + 0.05)
        if n % 3:
            router.complete(decision, answered(n * 0.1 + 0.4))
        else:
            kept.append(decision)
    return router, kept


def test_the_table_names_what_the_options_offer() -> None:
    assert tuple(policies.TABLE) == POLICIES
    assert all(name == made.name for name, made in policies.TABLE.items())


def test_kebab_and_snake_spelling_and_a_clear_refusal() -> None:
    assert isinstance(policies.create("round-robin"), RoundRobin)
    assert isinstance(policies.create("least_loaded"), LeastLoaded)
    assert isinstance(policies.create("dynamo-kv"), DynamoKv)
    with pytest.raises(ConfigError, match="'policy' = 'fastest': expected one of lbgr"):
        policies.create("fastest")


@every_policy
def test_one_finite_score_for_each_candidate_in_their_order(policy: str) -> None:
    router, _ = used(policy)
    decision = router.route(ask_for(1, 2, 3), 9.0)
    assert [score.engine for score in decision.scores] == ["e0", "e1", "e2"]
    assert all(0 <= score.total < 1e9 for score in decision.scores)
    assert decision.reason == "lowest_cost"
    assert decision.score.total == min(score.total for score in decision.scores)


@every_policy
def test_only_eligible_engines_are_chosen(policy: str) -> None:
    router, _ = used(policy, engines=4)
    router.set_health(EngineId("e0"), False)
    chosen = {router.route(ask_for(n), 9.0, exclude={EngineId("e1")}).engine for n in range(20)}
    assert chosen <= {"e2", "e3"}
    if policy in SPREADS:
        assert chosen == {"e2", "e3"}
    with pytest.raises(NoEngine):
        router.route(ask_for(1), 9.0, exclude={EngineId(f"e{n}") for n in range(4)})


@every_policy
def test_asking_changes_nothing(policy: str) -> None:
    router, _ = used(policy)
    views = router._fleet.views()
    candidates = [Candidate(view, 64.0 * n) for n, view in enumerate(views)]
    routing = RoutingContext(ask_for(1, 2, 3), 192.0, 64.0, 9.0, 0.5)
    described, state = router.describe(EngineId("e0")), state_of(router._experiment.lead)
    assert router._experiment.lead.choose(routing, candidates) == router._experiment.lead.choose(routing, candidates)
    assert router.describe(EngineId("e0")) == described
    assert router._fleet.views() == views
    assert state_of(router._experiment.lead) == state


@every_policy
def test_a_decision_depends_on_its_chance_alone(policy: str) -> None:
    router, _ = used(policy)
    candidates = [Candidate(view, 0.0) for view in router._fleet.views()]
    asks = [RoutingContext(ask_for(1, 2, 3), 192.0, 64.0, 9.0, chance / 10) for chance in range(10)]
    first = [pick(router._experiment.lead.choose(routing, candidates), routing.chance).engine for routing in asks]
    assert [
        pick(router._experiment.lead.choose(routing, candidates), routing.chance).engine for routing in asks
    ] == first


@every_policy
@pytest.mark.parametrize("engines", [1, 2, 5])
@pytest.mark.parametrize("session", [None, "never seen before", "\ud800"])
@pytest.mark.parametrize("units", [0, 1, 64, 10_000_000])
def test_any_request_finds_an_engine(policy: str, engines: int, session: str | None, units: int) -> None:
    router = router_with(engines, policy)
    prompt = Prompt(BlockKey(0), tuple(BlockKey(n) for n in range(units // 64 % 100)), 64, units, (), True)
    for n in range(4):
        request = replace(ask_for(1), prompt=prompt, session=session, stream=n % 2 == 0)
        decision = router.route(request, float(n))
        assert decision.engine in router.status().engines
        assert decision.reason == ("lowest_cost" if engines > 1 else "only_engine")
        router.first_token(decision, n + 0.1)
        if n:
            router.complete(decision, answered(n + 0.2))
    assert router.status().faults == 0


@pytest.mark.parametrize("policy", TIES_DRAWN)
def test_ties_are_spread_and_a_seed_repeats_them(policy: str) -> None:
    def first_choices(start: int) -> list[str]:
        return [router_with(4, policy, seed=seed).route(ask_for(1), 0.0).engine for seed in range(start, start + 40)]

    assert set(first_choices(0)) == {"e0", "e1", "e2", "e3"}
    assert first_choices(0) == first_choices(0)


@pytest.mark.parametrize("policy", LOAD_AWARE)
@pytest.mark.parametrize("stream", [True, False])
def test_a_busy_engine_never_wins_against_an_idle_one_on_a_miss(policy: str, stream: bool) -> None:
    router = router_with(2, policy)
    for n in range(20):
        router.route(ask_for(100 + n, stream=stream), 0.0, exclude={EngineId("e1")})
    assert router.route(ask_for(7, 8, 9, stream=stream), 0.001).engine == "e1"


@every_policy
@pytest.mark.parametrize("ending", list(Ending))
@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("seen", [True, False])
def test_load_returns_to_zero_after_every_ending_repeated_or_not(
    policy: str, ending: Ending, stream: bool, seen: bool
) -> None:
    router = router_with(2, policy)
    decisions = [router.route(ask_for(n, n + 1, stream=stream), 0.1 * n) for n in range(6)]
    for decision in decisions + decisions:
        if seen:
            router.first_token(decision, 1.0)
        router.complete(decision, Outcome(ending, 2.0, output_tokens=5))
        router.first_token(decision, 3.0)
    for engine in router._fleet.ids():
        view = router._fleet.view(engine)
        assert (view.in_flight, view.waiting, view.waiting_tokens, view.context_tokens) == (0, 0, 0.0, 0.0)
        assert (view.head, view.oldest_unstreamed) == (None, None)
    assert router.in_flight == 0
    assert router.status().faults == 0


@every_policy
def test_engines_may_leave_with_requests_in_flight_and_come_back(policy: str) -> None:
    router, kept = used(policy)
    router.remove_engine(EngineId("e0"))
    for decision in kept:
        router.first_token(decision, 9.0)
        lost = decision.engine == EngineId("e0")
        router.complete(decision, Outcome(Ending.ENGINE_LOST if lost else Ending.CANCELLED, 9.0))
    router.add_engine(EngineId("e0"))
    router.set_health(EngineId("e0"), True)
    chosen = {router.route(ask_for(50 + n), 10.0).engine for n in range(12)}
    assert "e0" in chosen
    if policy in SPREADS:
        assert chosen == {"e0", "e1", "e2"}
    assert router.status().faults == 0


@every_policy
def test_what_left_is_forgotten(policy: str) -> None:
    router, _ = used(policy)
    for engine in router._fleet.ids():
        router.remove_engine(engine)
    left = state_of(router._experiment.lead)
    assert not any(name.encode() in left for name in ("e0", "e1", "e2"))


@every_policy
@pytest.mark.parametrize("ending", [Ending.CANCELLED, Ending.TIMEOUT, Ending.ENGINE_LOST, Ending.REJECTED])
@pytest.mark.parametrize("stream", [True, False])
def test_requests_that_fail_leave_no_trace_in_the_choice(policy: str, ending: Ending, stream: bool) -> None:
    """Engine e0 fails all of its many requests, fast; afterwards it is no better and no worse to a new prompt than e1,
    but for what a policy counts on purpose: turns, and what was ever sent where."""
    router = router_with(2, policy)
    for n in range(50):
        decision = router.route(ask_for(n, stream=stream), n * 0.1, exclude={EngineId("e1")})
        router.complete(decision, Outcome(ending, n * 0.1 + 0.001))
    routing = RoutingContext(ask_for(7777, stream=stream), 64.0, 64.0, 1000.0, 0.0)
    first, second = router._experiment.lead.choose(routing, [Candidate(view, 0.0) for view in router._fleet.views()])
    if policy == "consistent_hash":
        assert {first.total, second.total} == {0.0, 1.0}
    elif policy == "power_of_two":
        assert {first.total, second.total} == {0.0, 0.5}
    elif policy in ("round_robin", "cache_aware"):
        assert first.total > second.total
    else:
        priced = first.terms.get("failure", 0.0)  # that is what failures are meant to change
        assert (priced > 0) == (policy == "lbgr" and ending in (Ending.TIMEOUT, Ending.ENGINE_LOST))
        assert first.total - priced == pytest.approx(second.total)


def events(policy: Policy[Any], decision: Decision, numbers: range) -> None:
    """Whole lives of requests with prompts of their own, every third of them in trouble."""
    view = router_with(1, "random")._fleet.view(EngineId("e0"))
    endings = [Ending.OK, Ending.CANCELLED, Ending.OK, Ending.ENGINE_LOST]
    for n in numbers:
        now = n * 0.2
        prompt = Prompt(BlockKey(0), (BlockKey(2 * n), BlockKey(2 * n + 1)), 64, 128, (), True)
        request = replace(decision.request, prompt=prompt, session=f"c{n}", stream=n % 3 > 0)
        each = replace(decision, request=request, booking=n, dispatched_s=now, engine=EngineId(f"e{n % 3}"))
        policy.dispatched(each)
        if request.stream:
            policy.first_token(each, now + 0.05)
        booking = booking_of(each)
        released = ReleasedBooking(
            booking, now + 0.05 if request.stream else None, now + 0.5, 1.0, 64.0, view.capacity_tokens
        )
        policy.learn(each, released, Outcome(endings[n % 4], now + 0.5, None, 128, 0, 20))


def booking_of(decision: Decision) -> Booking:
    return Booking(
        decision.booking,
        decision.engine,
        decision.dispatched_s,
        decision.request.stream,
        decision.prompt_tokens,
        decision.hit_tokens,
        decision.output_tokens,
        decision.predicted_s,
    )


@pytest.mark.parametrize("policy", sorted(set(policies.TABLE) - {"smetric"}))  # its cap: test_smetric
def test_traffic_does_not_make_it_grow(policy: str) -> None:
    router, _ = used(policy)
    decision = router.route(ask_for(1, 2), 9.0)
    events(router._experiment.lead, decision, range(1000, 2000))
    before = len(state_of(router._experiment.lead))
    events(router._experiment.lead, decision, range(2000, 4000))
    assert len(state_of(router._experiment.lead)) < 1.1 * before + 500


@every_policy
def test_what_it_dumps_is_json_and_another_takes_it_up(policy: str) -> None:
    router, _ = used(policy)
    state, fresh = router._experiment.lead.dump(9.0), policies.create(policy)
    copied = json.loads(json.dumps(state, allow_nan=False))
    fresh.load(SavedFields(copied, policy), 9.0, {engine: engine for engine in router._fleet.ids()})
    assert fresh.dump(9.0) == state == copied


def state_of(policy: Policy[Any]) -> bytes:
    """Without the options, and the cost of lbgr, which keeps nothing of its own."""
    return pickle.dumps({name: value for name, value in vars(policy).items() if name not in ("options", "_cost")})


def test_pick_splits_exact_ties_evenly_and_refuses_what_is_no_number() -> None:
    totals = [1.0, 0.5, 0.5, 0.5]
    assert [pick(ranked(totals), chance).engine for chance in (0.0, 0.34, 0.99)] == ["e1", "e2", "e3"]
    for bad in (float("nan"), float("-inf")):
        with pytest.raises(ValueError, match="not a number"):
            pick(ranked([*totals, bad]), 0.0)


def ranked(totals: Sequence[float]) -> Scores:
    candidates = [Candidate(EngineView(EngineId(f"e{n}"), EngineInfo(), 0, 0), 0.0) for n in range(len(totals))]
    return Scores(candidates, array("d", [x for total in totals for x in (total, nan, 0.0, nan)]), Unit.RANK)
