"""What every registered policy must do, whatever its idea."""

import random

import pytest
from virtual_fleet import answered, ask_for, router_with

from router import policies
from router.config import POLICIES, Config
from router.core import Router
from router.errors import ConfigError, NoEngine
from router.policies.base import Ask, pick
from router.types import Candidate, Decision, Ending, EngineId, Outcome, Score

LOAD_AWARE = sorted(set(policies.TABLE) - {"round_robin"})
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


def test_the_table_names_what_the_options_offer():
    assert tuple(policies.TABLE) == POLICIES
    assert all(name == made.name for name, made in policies.TABLE.items())


def test_kebab_and_snake_spelling_and_a_clear_refusal():
    assert isinstance(policies.create("round-robin", Config()), policies.RoundRobin)
    assert isinstance(policies.create("least_loaded", Config()), policies.LeastLoaded)
    with pytest.raises(ConfigError, match="'policy' = 'fastest': expected one of lbgr"):
        policies.create("fastest", Config())


@every_policy
def test_one_finite_score_for_each_candidate_in_their_order(policy):
    router, _ = used(policy)
    decision = router.route(ask_for(1, 2, 3), 9.0)
    assert [score.engine for score in decision.scores] == ["e0", "e1", "e2"]
    assert all(0 <= score.total_s < 1e9 for score in decision.scores)
    assert decision.reason == "lowest_cost"
    assert decision.score.total_s == min(score.total_s for score in decision.scores)


@every_policy
def test_only_eligible_engines_are_chosen(policy):
    router, _ = used(policy, engines=4)
    router.fleet.set_health(EngineId("e0"), False)
    chosen = {router.route(ask_for(n), 9.0, exclude={EngineId("e1")}).engine for n in range(20)}
    assert chosen == {"e2", "e3"}
    with pytest.raises(NoEngine):
        router.route(ask_for(1), 9.0, exclude={EngineId(f"e{n}") for n in range(4)})


@every_policy
def test_asking_changes_nothing(policy):
    router, _ = used(policy)
    views = router.fleet.views()
    candidates = [Candidate(view, 64.0 * n) for n, view in enumerate(views)]
    ask = Ask(ask_for(1, 2, 3), 192.0, 64.0, 9.0, 0.5)
    described = router.describe(EngineId("e0"))
    assert router.policy.choose(ask, candidates) == router.policy.choose(ask, candidates)
    assert router.describe(EngineId("e0")) == described
    assert router.fleet.views() == views


@every_policy
def test_ties_are_spread_and_a_seed_repeats_them(policy):
    def first_choices(start: int) -> list[str]:
        return [router_with(4, policy, seed=seed).route(ask_for(1), 0.0).engine for seed in range(start, start + 40)]

    assert set(first_choices(0)) == {"e0", "e1", "e2", "e3"}
    assert first_choices(0) == first_choices(0)


@pytest.mark.parametrize("policy", LOAD_AWARE)
@pytest.mark.parametrize("stream", [True, False])
def test_a_busy_engine_never_wins_against_an_idle_one_on_a_miss(policy, stream):
    router = router_with(2, policy)
    for n in range(20):
        router.route(ask_for(100 + n, stream=stream), 0.0, exclude={EngineId("e1")})
    assert router.route(ask_for(7, 8, 9, stream=stream), 0.001).engine == "e1"


@every_policy
@pytest.mark.parametrize("ending", list(Ending))
@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("seen", [True, False])
def test_load_returns_to_zero_after_every_ending_repeated_or_not(policy, ending, stream, seen):
    router = router_with(2, policy)
    decisions = [router.route(ask_for(n, n + 1, stream=stream), 0.1 * n) for n in range(6)]
    for decision in decisions + decisions:
        if seen:
            router.first_token(decision, 1.0)
        router.complete(decision, Outcome(ending, 2.0, output_tokens=5))
        router.first_token(decision, 3.0)
    for engine in router.fleet.ids():
        view = router.fleet.view(engine)
        assert (view.in_flight, view.waiting, view.waiting_tokens, view.context_tokens) == (0, 0, 0.0, 0.0)
        assert (view.head, view.oldest_unstreamed) == (None, None)
    assert router.fleet.in_flight == 0
    assert router.policy_faults == 0


@every_policy
def test_engines_may_leave_with_requests_in_flight_and_come_back(policy):
    router, kept = used(policy)
    router.fleet.remove(EngineId("e0"))
    for decision in kept:
        router.first_token(decision, 9.0)
        router.complete(decision, Outcome(Ending.ENGINE_LOST, 9.0))
    router.fleet.add(EngineId("e0"))
    router.fleet.set_health(EngineId("e0"), True)
    assert {router.route(ask_for(50 + n), 10.0).engine for n in range(12)} == {"e0", "e1", "e2"}
    assert router.policy_faults == 0


def test_pick_splits_exact_ties_evenly_and_refuses_what_is_no_number():
    scores = [Score(EngineId(f"e{n}"), total, None, 0.0) for n, total in enumerate((1.0, 0.5, 0.5, 0.5))]
    assert [pick(scores, chance).engine for chance in (0.0, 0.34, 0.99)] == ["e1", "e2", "e3"]
    for bad in (float("nan"), float("-inf")):
        with pytest.raises(ValueError, match="not a number"):
            pick([*scores, Score(EngineId("e9"), bad, None, 0.0)], 0.0)
