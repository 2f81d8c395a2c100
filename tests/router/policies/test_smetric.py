from dataclasses import replace
from typing import Any

import pytest

from router.config import configure
from router.core.router import Router
from router.policies.base import RoutingContext
from router.policies.lmetric import product
from router.policies.smetric import SAMPLES, TURNS, PrefillSpeed, SMetric
from router.types import BlockKey, Candidate, EngineId, EngineInfo, EngineView, Prompt
from tests.support.virtual_fleet import answered, ask_for, prompt_of, router_with

E0, E1 = EngineId("e0"), EngineId("e1")


def after(*keys: int, speed: float | None = None, **options: Any) -> SMetric:
    """A policy that has seen a prompt of these blocks, and engine e0 prefill at that many tokens a second."""
    router = router_with(1, "smetric", **options)
    decision = router.route(ask_for(*keys), 0.0)
    assert isinstance(router._experiment.lead, SMetric)
    for _ in range(8 if speed else 0):
        router._experiment.lead.first_token(decision, decision.prompt_tokens / (speed or 1.0))
    return router._experiment.lead


def scored(policy: SMetric, keys: range, *engines: tuple[int, float, float], session: str | None = None) -> list[float]:
    """engines: (in flight, tokens queued, tokens cached)."""
    candidates = [
        Candidate(EngineView(EngineId(f"e{n}"), EngineInfo(), load, 0, queued), hit)
        for n, (load, queued, hit) in enumerate(engines)
    ]
    routing = RoutingContext(replace(ask_for(*keys), session=session), 64.0 * len(keys), 64.0, 0.0, 0.0)
    return [s.total for s in policy.choose(routing, candidates)]


def test_a_first_turn_goes_by_load_however_much_is_cached() -> None:
    """20 blocks, 19 of them cached on the busy engine; it continues no prompt seen before."""
    engines = (30, 0.0, 1216.0), (0, 0.0, 0.0)
    assert scored(SMetric(), range(20), *engines, session="new") == [64.0 * 31, 1280.0]
    turns_only = SMetric(configure(smetric_shared_ratio=1.0).policies.smetric)
    assert scored(turns_only, range(20), *engines) == [64.0 * 31, 1280.0]


@pytest.mark.parametrize(("cached", "stays"), [(639.0, False), (640.0, True)])
def test_without_sessions_those_that_share_half_of_it_count_as_one(cached: float, stays: bool) -> None:
    totals = scored(SMetric(), range(20), (3, 0.0, cached), (0, 0.0, 0.0))
    assert totals == ([1280.0 - cached, 1280.0] if stays else [(1280.0 - cached) * 4, 1280.0])


def test_a_shared_prefix_is_followed_only_in_time() -> None:
    policy = after(*range(50, 60), speed=1000.0)
    assert scored(policy, range(20), (9, 440.0, 640.0), (0, 0.0, 0.0)) == [640.0, 1280.0]
    assert scored(policy, range(20), (9, 441.0, 640.0), (0, 0.0, 0.0)) == [1081.0 * 10, 1280.0]


def test_nothing_cached_is_nothing_shared() -> None:
    policy = SMetric(configure(smetric_shared_ratio=0.0).policies.smetric)
    assert scored(policy, range(20), (3, 0.0, 0.0), (0, 0.0, 0.0)) == [1280.0 * 4, 1280.0]


def test_a_follow_up_stays_where_its_prefix_is_however_busy() -> None:
    assert scored(after(*range(10)), range(20), (30, 0.0, 640.0), (0, 0.0, 0.0)) == [640.0, 1280.0]


@pytest.mark.parametrize(("cached", "stays"), [(320.0, False), (336.0, True)])
def test_an_evicted_conversation_starts_anew(cached: float, stays: bool) -> None:
    """Of the 640 tokens of the turn before more than half must still be there."""
    totals = scored(after(*range(10)), range(20), (3, 0.0, cached), (0, 0.0, 0.0))
    assert totals == ([1280.0 - cached, 1280.0] if stays else [(1280.0 - cached) * 4, 1280.0])


@pytest.mark.parametrize(("queued", "stays"), [(440.0, True), (441.0, False)])
def test_worked_example_of_the_target(queued: float, stays: bool) -> None:
    """1280 tokens, 640 cached: e0 at 1000 tokens a second has 1 + 0.0625 * 1.28 = 1.08 s for the queue and 640."""
    totals = scored(after(*range(10), speed=1000.0), range(20), (9, queued, 640.0), (0, 0.0, 0.0))
    assert totals == ([640.0, 1280.0] if stays else [(queued + 640.0) * 10, 1280.0])


def test_where_nobody_is_in_time_it_stays() -> None:
    policy = after(*range(10), speed=1000.0)
    router = router_with(2, "smetric")
    decision = replace(router.route(ask_for(*range(10)), 0.0, exclude={E0}), engine=E1)
    for _ in range(8):
        policy.first_token(decision, 1.0)  # 640 tokens a second
    assert scored(policy, range(20), (9, 9000.0, 640.0), (9, 9000.0, 0.0)) == [640.0, 1280.0]
    assert scored(policy, range(20), (9, 9000.0, 640.0), (0, 0.0, 0.0)) == [640.0, 1280.0]  # 2 s are too long as well


def test_the_target_is_an_option() -> None:
    slow = after(*range(10), speed=1000.0, smetric_slack=0.5)
    assert scored(slow, range(20), (9, 0.0, 640.0), (0, 0.0, 0.0)) == [6400.0, 1280.0]
    longer = after(*range(10), speed=1000.0, smetric_slack=0.5, smetric_ttft_slo_secs=2.0)
    assert scored(longer, range(20), (9, 0.0, 640.0), (0, 0.0, 0.0)) == [640.0, 1280.0]


def test_the_longest_turn_before_counts() -> None:
    policy = after(*range(4))
    decision = router_with(1, "smetric").route(ask_for(*range(10)), 0.0)
    policy.dispatched(decision)
    totals = scored(policy, range(20), (3, 0.0, 256.0), (0, 0.0, 0.0))
    assert totals[0] == (1280.0 - 256.0) * 4  # 256 were all of the first turn, but not half of the second


def conversation(router: Router, turns: int) -> list[EngineId]:
    engines = []
    for turn in range(1, turns + 1):
        decision = router.route(ask_for(*range(4 * turn)), 10.0 * turn)
        engines.append(decision.engine)
        router.first_token(decision, 10.0 * turn + 0.1)
        router.complete(decision, answered(10.0 * turn + 1))
    return engines


def test_a_conversation_through_the_router_stays_on_one_engine() -> None:
    router = router_with(4, "smetric")
    for n in range(6):  # a little company everywhere, left running
        router.route(ask_for(1000 + n), 0.0)
    assert len(set(conversation(router, 8))) == 1


def test_first_turns_are_scored_as_by_lmetric() -> None:
    candidates = [Candidate(EngineView(E0, EngineInfo(), 3, 1, 77.0), 16.0)]
    routing = RoutingContext(ask_for(1, 2), 128.0, 64.0, 0.0, 0.0)
    (score,) = SMetric().choose(routing, candidates)
    assert score.total == product(routing, candidates[0])


def test_turns_are_remembered_up_to_the_cap() -> None:
    router = router_with(1, "smetric")
    decision, policy = router.route(ask_for(5), 0.0), SMetric()
    for n in range(TURNS + 100):
        prompt = Prompt(BlockKey(0), (BlockKey(n),), 64, 64, (), True)
        policy.dispatched(replace(decision, request=replace(decision.request, prompt=prompt)))
    assert len(policy.turns) == TURNS
    assert BlockKey(0) not in policy.turns
    assert BlockKey(TURNS + 99) in policy.turns
    policy.dispatched(replace(decision, request=replace(decision.request, prompt=prompt_of())))
    assert len(policy.turns) == TURNS


def test_nothing_is_said_before_the_eighth_sample() -> None:
    speed = PrefillSpeed()
    for _ in range(7):
        speed.learn_one(E0, 1000.0, 0.5)
        assert speed.predict_one(E0) is None
    speed.learn_one(E0, 1000.0, 0.5)
    assert speed.predict_one(E0) == 2000.0


def test_requests_that_waited_do_not_hide_the_speed() -> None:
    """Nine of ten waited."""
    speed = PrefillSpeed()
    for n in range(60):
        speed.learn_one(E0, 1000.0, 0.1 if n % 5 == 0 else 0.1 * n + 0.2)
    assert speed.predict_one(E0) == pytest.approx(10_000.0)


def test_only_the_last_samples_count() -> None:
    speed = PrefillSpeed()
    for _ in range(SAMPLES):
        speed.learn_one(E0, 1000.0, 0.1)
    for _ in range(SAMPLES):
        speed.learn_one(E0, 1000.0, 0.2)
    assert speed.predict_one(E0) == pytest.approx(5000.0)


@pytest.mark.parametrize(("tokens", "elapsed_s"), [(0.0, 0.1), (100.0, 0.0), (100.0, -1.0)])
def test_what_says_nothing_is_not_learned(tokens: float, elapsed_s: float) -> None:
    speed = PrefillSpeed()
    for _ in range(20):
        speed.learn_one(E0, tokens, elapsed_s)
    assert speed.predict_one(E0) is None


def test_a_forgotten_engine_starts_anew() -> None:
    speed = PrefillSpeed()
    for _ in range(8):
        speed.learn_one(E0, 1000.0, 0.1)
    speed.forget(E0)
    assert speed.predict_one(E0) is None
