import pytest

from router.core.router import Router
from router.policies.base import RoutingContext
from router.policies.lbgr.cost import Features
from router.policies.lbgr.options import LbgrOptions
from router.policies.lbgr.policy import Lbgr
from router.types import Booking, Candidate, Decision, Ending, EngineId, EngineInfo, EngineView, Outcome
from tests.support.virtual_fleet import (
    VirtualEngine,
    answered,
    ask_for,
    mean_s,
    router_with,
    shared_prefixes,
    simulate,
)

E = EngineId("e0")


def coefficients_of(router: Router) -> dict[str, float]:
    """What lbgr has learned, in the units of the latency model (ms, thousands of tokens)."""
    coefficients = router.describe(E)["coefficients"]
    assert isinstance(coefficients, dict)
    return coefficients


def slowness_of(router: Router, engine: EngineId) -> float:
    slowness = router.describe(engine)["slowness"]
    assert isinstance(slowness, float)
    return slowness


def predicted_s_of(decision: Decision) -> float:
    assert decision.predicted_s is not None
    return decision.predicted_s


def test_worked_example() -> None:
    """By hand, with the coefficients of the start: a 10 ms, b .1 ms a token, al .001 ms a token, g0 20 ms an output
    token, g1 .2 ms for each other, g2 .0001 ms for each token of context."""
    head = Booking(1, E, 9.9, True, 600.0, 100.0, 50.0, None)
    busy = EngineView(E, EngineInfo(), 4, 2, 1500.0, 4000.0, 8000.0, head, 9.95)
    idle = EngineView(EngineId("e1"), EngineInfo(), 0, 0, 0.0, 0.0, 8000.0)
    routing = RoutingContext(ask_for(1), 2000.0, 50.0, 10.0, 0.0)
    first, second = Lbgr().choose(routing, [Candidate(busy, 1200.0), Candidate(idle, 0.0)])
    # 50 ms since the last first token at 10 tokens a ms: the head has 500 tokens, all of its 500; q = 1500 - 500
    assert Features(*first.features) == (2, 0, 1000.0, 0.0)
    assert (first.hit_tokens, second.hit_tokens) == (1200.0, 0.0)
    ms = {name: seconds * 1000 for name, seconds in first.terms.items()}
    assert ms["wait"] == pytest.approx(10 * 2 + 0.1 * 1000)  # 120
    pairs = 0.8 * (1.2 + 0.4)  # millions: 800 uncached tokens behind 1200 cached ones
    assert ms["prefill"] == pytest.approx(10 + 0.1 * 800 + 0.001 * 1200 + 3.3 * pairs)  # 95.424
    assert ms["decode"] == pytest.approx(50 * (20 + 0.2 * 4 + 0.0001 * 4000))  # 1060
    assert ms["imposed"] == pytest.approx(4 * 95.424 + 50 * (0.2 + 0.0001 * 2000) * 4)  # 461.696
    assert ms["duplication"] == pytest.approx(2 * 4 * 0.3 * 2 * (0.1 * 800 + 3.3 * pairs))  # one waits, in the mean
    assert ms["first_token"] == pytest.approx(120 + 95.424)
    assert (ms["room"], ms["objective"]) == (0.0, 0.0)
    assert first.total * 1000 == pytest.approx(2 * (120 + 95.424) + 1060 + 461.696 + 404.2752)
    assert first.total == pytest.approx(sum(first.terms.values()))
    assert first.predicted_s == pytest.approx((120 + 95.424 + 1060) / 1000)
    assert second.total * 1000 == pytest.approx(2 * (210 + 3.3 * 2) + 1000 + 2 * 4 * 0.3 * 2 * (200 + 3.3 * 2))


def test_in_a_cache_too_small_for_all_requests_wait_for_room() -> None:
    view = EngineView(E, EngineInfo(), 6, 0, 0.0, 6000.0, 2000.0)
    routing = RoutingContext(ask_for(1), 100.0, 10.0, 0.0, 0.0)
    (score,) = Lbgr().choose(routing, [Candidate(view, 0.0)])
    decode = 10 * (20 + 0.2 * 2 + 0.0001 * 2000)
    assert score.terms["decode"] * 1000 == pytest.approx(decode)
    # 6100 tokens in a cache of 2000: what does not fit waits for as many times a decode as it is caches
    assert score.terms["room"] * 1000 == pytest.approx(decode * 4100 / 2000)
    assert score.predicted_s == pytest.approx(sum(score.terms[term] for term in ("room", "prefill", "decode")))


def test_what_a_session_pushes_out_is_priced_where_it_does_not_fit() -> None:
    views = [EngineView(EngineId(f"e{number}"), EngineInfo(), number, 0, 0.0, 0.0, 8000.0) for number in range(3)]
    excess = {EngineId("e0"): 500.0, EngineId("e2"): 1000.0}
    routing = RoutingContext(ask_for(1), 2000.0, 50.0, 10.0, 0.0, excess_tokens=excess)
    scores = list(Lbgr().choose(routing, [Candidate(view, 0.0) for view in views]))
    token_ms = 0.1 + 3.3 * 2.0 / 2 / 1000  # b, and what a token of the middle of such a prompt attends to
    prices = [score.terms["crowding"] * 1000 for score in scores]
    assert prices == pytest.approx([3 * 500 * token_ms, 0.0, 3 * (1 + 2) * 1000 * token_ms])
    assert [score.total for score in scores] == pytest.approx([sum(score.terms.values()) for score in scores])
    predictions = [score.predicted_s for score in scores]
    without = Lbgr().choose(RoutingContext(ask_for(1), 2000.0, 50.0, 10.0, 0.0), [Candidate(v, 0.0) for v in views])
    assert predictions == [score.predicted_s for score in without]  # it costs others


def test_an_empty_engine_has_room_whatever_it_is_asked() -> None:
    view = EngineView(E, EngineInfo(), 0, 0, 0.0, 0.0, 2000.0)
    (score,) = Lbgr().choose(RoutingContext(ask_for(1), 9000.0, 10.0, 0.0, 0.0), [Candidate(view, 0.0)])
    assert score.terms["room"] == 0.0


def test_the_weights_are_options() -> None:
    view = EngineView(E, EngineInfo(), 2, 0, 0.0, 200.0, 2000.0)
    off = LbgrOptions(first_token_weight=0.0, duplication_weight=0.0, imposed_prefill=0.0, imposed_decode=0.0)
    (score,) = Lbgr(off).choose(RoutingContext(ask_for(1), 100.0, 10.0, 0.0, 0.0), [Candidate(view, 0.0)])
    assert (score.terms["imposed"], score.terms["duplication"]) == (0.0, 0.0)
    assert score.total == score.predicted_s


@pytest.mark.parametrize("stream", [True, False])
def test_a_follow_up_turn_returns_to_its_engine(stream: bool) -> None:
    router, turns = router_with(4), []
    for turn in range(1, 6):
        decision = router.route(ask_for(*range(4 * turn), stream=stream), 10.0 * turn)
        turns.append(decision)
        router.first_token(decision, 10.0 * turn + 0.1)
        router.complete(decision, answered(10.0 * turn + 1))
    assert len({decision.engine for decision in turns}) == 1
    assert [decision.hit_tokens for decision in turns] == [0.0, 256.0, 512.0, 768.0, 1024.0]


@pytest.mark.parametrize("stream", [True, False])
def test_different_prompts_spread_and_equal_ones_stay_together_until_it_pays_to_part(stream: bool) -> None:
    router = router_with(4)
    for n in range(12):
        router.route(ask_for(*range(100 * n, 100 * n + 4), stream=stream), 0.0)
    assert [view.in_flight for view in router._fleet.views()] == [3, 3, 3, 3]
    together = router_with(4)
    burst = [together.route(ask_for(*range(32), units=2100, stream=stream), 0.001 * n).engine for n in range(3)]
    assert len(set(burst)) == 1


def serve_equal_requests(
    router: Router, start_s: float, slow: EngineId, factor: float, count: int, *, stream: bool
) -> None:
    """Equal requests, each alone on its engine: `slow` takes `factor` times as long as the others."""
    for n in range(count):
        now = start_s + 3.0 * n
        decision = router.route(ask_for(*range(100 * n, 100 * n + 8), stream=stream), now, exclude=set())
        speed = factor if decision.engine == slow else 1.0
        router.first_token(decision, now + 0.07 * speed)
        done = now + (0.07 + 19 * 0.02) * speed
        router.complete(decision, Outcome(Ending.OK, done, None, 512, 0, 20))


@pytest.mark.parametrize("stream", [True, False])
def test_a_slow_engine_gets_less(stream: bool) -> None:
    router = router_with(2)
    serve_equal_requests(router, 0.0, E, 3.0, 60, stream=stream)
    assert slowness_of(router, E) > 1.2 * slowness_of(router, EngineId("e1"))
    chosen = [router.route(ask_for(10_000 + n, stream=stream), 185.0).engine for n in range(12)]
    assert chosen.count(E) < chosen.count(EngineId("e1"))


@pytest.mark.parametrize("stream", [True, False])
def test_a_stalled_engine_is_avoided_though_it_holds_the_prefix(stream: bool) -> None:
    router = router_with(2)
    first = router.route(ask_for(*range(16), stream=stream), 0.0)
    assert router.route(ask_for(*range(16), stream=stream), 0.1).engine == first.engine
    assert router.route(ask_for(*range(16), stream=stream), 30.0).engine != first.engine


def test_unstreamed_requests_queue_virtually() -> None:
    router = router_with(1)
    router.route(ask_for(*range(100), stream=False), 0.0)
    soon = Features(*router.route(ask_for(900, stream=False), 0.1).score.features)
    later = Features(*router.route(ask_for(901, stream=False), 5.0).score.features)
    assert soon.unseen == 1
    assert soon.backlog_tokens == pytest.approx(6400.0 - 1000.0)
    assert (later.unseen, later.backlog_tokens) == (0, 0.0)


def test_a_first_token_tells_that_the_unstreamed_before_it_are_computed() -> None:
    router = router_with(1)
    router.route(ask_for(*range(100), stream=False), 0.0)
    streamed = router.route(ask_for(901), 0.0)
    assert Features(*router.route(ask_for(902), 0.0).score.features).unseen == 1
    router.first_token(streamed, 0.1)
    after = Features(*router.route(ask_for(903), 0.1).score.features)
    assert (after.unseen, after.waiting) == (0, 1)


@pytest.mark.parametrize("ending", [e for e in Ending if e is not Ending.OK])
@pytest.mark.parametrize("stream", [True, False])
def test_what_did_not_end_well_teaches_no_latency(ending: Ending, stream: bool) -> None:
    router = router_with(1)
    untaught = coefficients_of(router)
    for n in range(20):
        decision = router.route(ask_for(n, stream=stream), 10.0 * n)
        router.complete(decision, Outcome(ending, 10.0 * n + 9.0, None, 64, 0, 50))
    assert coefficients_of(router) == untaught
    assert router.describe(E)["samples"] == 0


def test_another_policys_choice_can_be_followed() -> None:
    """As in a shadow: events of decisions that carry no features of ours."""
    router = router_with(2, "least_loaded")
    shadow = Lbgr()
    for n in range(10):
        decision = router.route(ask_for(n, stream=n % 2 == 0), float(n))
        shadow.dispatched(decision)
        shadow.first_token(decision, n + 0.1)
        released = router._fleet.release(decision.booking, n + 0.5, answered=True)
        assert released is not None
        shadow.learn(decision, released, answered(n + 0.5))
    assert shadow.describe(E)["samples"] == 0


@pytest.mark.parametrize("slowness", [1.0, 10.0])
@pytest.mark.parametrize("stream", [True, False])
def test_predictions_come_true_on_hardware_of_any_speed(slowness: float, stream: bool) -> None:
    router = router_with(2)
    engines = [VirtualEngine(slowness=slowness) for _ in range(2)]
    arrivals = [
        (4.0 * slowness * n, ask_for(*range(100 * n, 100 * n + 2 + 7 * (n % 5)), stream=stream, max_tokens=20), 20)
        for n in range(60)
    ]
    answers = simulate(router, engines, arrivals)[40:]
    errors = [abs(predicted_s_of(d) / (o.done_s - d.dispatched_s) - 1) for d, o in answers]
    assert max(errors) < 0.1


@pytest.mark.parametrize("slowness", [1.0, 10.0])
@pytest.mark.parametrize("stream", [True, False])
def test_beats_round_robin_where_prefixes_are_shared(slowness: float, stream: bool) -> None:
    """Four engines at about 90 % of what round_robin can carry, 24 groups of prompts sharing their first half."""
    means = {}
    for policy in ("round_robin", "lbgr"):
        router = router_with(4, policy)
        engines = [VirtualEngine(slowness=slowness, cache_blocks=250) for _ in range(4)]
        arrivals = shared_prefixes(1, rate=15.0 / slowness, count=300, half=24, stream=stream)
        answers = simulate(router, engines, arrivals)
        assert router.in_flight == router.status().faults == 0
        means[policy] = mean_s(answers[30:])
    assert means["lbgr"] < 0.7 * means["round_robin"]


def test_an_engine_twice_as_slow_carries_less_under_load() -> None:
    router = router_with(2)
    engines = [VirtualEngine(slowness=2.0), VirtualEngine()]
    answers = simulate(router, engines, shared_prefixes(3, rate=4.0, count=200, half=16))
    share = sum(d.engine == "e0" for d, _ in answers[50:]) / 150
    assert 0.1 < share < 0.42


def test_mixed_traffic_learns_from_both_kinds() -> None:
    router = router_with(2)
    streamed = shared_prefixes(4, rate=3.0, count=120, half=8)
    whole = [(t + 0.05, ask_for(*(k + 5 for k in r.prompt.keys), stream=False), o) for t, r, o in streamed]
    answers = simulate(router, [VirtualEngine() for _ in range(2)], sorted(streamed + whole, key=lambda a: a[0]))
    assert len(answers) == 240
    coefficients = coefficients_of(router)
    assert 60 < coefficients["b"] < 140  # the truth is 100


@pytest.mark.parametrize(("order", "weight"), [(None, 4), ("lru", 4), ("rlt_gix", 3), ("rlt", 3)])
def test_duplication_weighs_less_where_a_copy_displaces_little(order: str | None, weight: float) -> None:
    view = EngineView(E, EngineInfo(order=order), 1, 1, 200.0, 200.0, 2000.0)
    (score,) = Lbgr().choose(RoutingContext(ask_for(1), 1000.0, 10.0, 0.0, 0.0), [Candidate(view, 0.0)])
    assert score.terms["duplication"] * 1000 == pytest.approx(2 * weight * 0.3 * 2 * (100 + 3.3 / 2))


def test_prefill_of_others_is_told_apart_from_decoding_and_foreseen() -> None:
    """Four tokens take 60 ms alone; two of three answers wait out the 300 ms prefill of the next request as well."""
    router = router_with(1)
    before, clock = None, 0.0
    for n in range(120):
        if n % 3 == 0 and before is not None:
            router.complete(before, answered(clock + 0.06, output=4))
            before = None
            clock += 1.0
        decision = router.route(ask_for(*range(100 * n, 100 * n + 32)), clock)  # 2,048 new tokens
        clock += 0.3
        router.first_token(decision, clock)
        if before is not None:
            router.complete(before, answered(clock + 0.06, output=4))
        before = decision
    coefficients = coefficients_of(router)
    assert 10 < coefficients["g0"] + coefficients["g2"] * 2 < 30
    assert coefficients["gp"] > 0.8
    busy = router.route(ask_for(*range(50_000, 50_032)), clock)
    assert predicted_s_of(busy) - 0.3 > 0.12  # not the 80 ms that four tokens take alone


def pace(router: Router, latency_s: float, numbers: range, *, output: int | None = 10) -> list[tuple[str, str | None]]:
    """One request after the other, each answered after that time: why each went where, and who chose."""
    found = []
    for n in numbers:
        decision = router.route(ask_for(n, stream=False), 100.0 * n)
        router.complete(decision, Outcome(Ending.OK, 100.0 * n + latency_s, None, 64, 0, output))
        found.append((decision.reason, decision.fallback))
    return found


def test_it_is_not_heeded_before_it_has_learned_and_learns_from_what_others_place() -> None:
    router = router_with(2, lbgr_cold_samples=8)
    assert pace(router, 0.3, range(12)) == [("cold", "lmetric")] * 8 + [("lowest_cost", None)] * 4
    assert router.describe(E)["samples"] == 12


def test_streamed_requests_that_another_places_teach_it_both_lines() -> None:
    router = router_with(1, lbgr_cold_samples=6)
    for n in range(4):
        decision = router.route(ask_for(n), float(n))
        router.first_token(decision, n + 0.05)
        router.complete(decision, answered(n + 0.5))
    assert router.describe(E)["samples"] == 8
    assert router.describe(E)["trouble"] is None


def test_predictions_made_cold_are_not_held_against_it() -> None:
    router = router_with(2, lbgr_cold_samples=8)
    decisions = [router.route(ask_for(n, stream=False), 0.0) for n in range(100)]
    for n, decision in enumerate(decisions):
        router.complete(decision, answered(100.0 + n))
    assert router.route(ask_for(1), 1000.0).fallback is None


def test_a_model_wrong_by_a_multiple_is_not_heeded_until_it_is_right_again() -> None:
    router = router_with(2)
    assert set(pace(router, 0.3, range(40))) == {("lowest_cost", None)}
    wrong = pace(router, 30.0, range(40, 120), output=None)  # without usage it learns nothing
    assert wrong[:20] == [("lowest_cost", None)] * 20
    assert wrong[-1] == ("error", "lmetric")
    assert router.describe(E)["trouble"] == "error"
    right = pace(router, 0.3, range(120, 200), output=None)
    assert right[0] == ("error", "lmetric")
    assert right[-1] == ("lowest_cost", None)


def test_it_falls_back_at_the_start_only() -> None:
    router = router_with(3, lbgr_cold_samples=8)
    answers = simulate(router, [VirtualEngine() for _ in range(3)], shared_prefixes(1, rate=6, count=400))
    reasons = [decision.reason for decision, _ in sorted(answers, key=lambda each: each[0].booking)]
    assert reasons[0] == "cold"
    assert set(reasons[30:]) == {"lowest_cost"}


@pytest.mark.parametrize("stream", [True, False])
def test_a_request_that_waited_for_room_teaches_prefill_nothing(stream: bool) -> None:
    """One stream fills the cache. The next request waits for room, and its answer comes after 100 s."""

    def learned(ending: Ending, capacity_blocks: int) -> dict[str, float]:
        router = router_with(1)
        router.set_info(E, EngineInfo(models=(), capacity_blocks=capacity_blocks, block_size=16))
        first = router.route(ask_for(1, units=1500), 0.0)
        waiting = router.route(ask_for(2, units=1000, stream=stream), 0.1)
        assert Features(*waiting.score.features).over_tokens == max(0, 2500 - 16 * capacity_blocks)
        router.first_token(first, 0.2)
        router.first_token(waiting, 100.0)
        router.complete(first, Outcome(Ending.CANCELLED, 100.1))
        router.complete(waiting, Outcome(ending, 101.0, 100.0 if stream else None, 1000, 0, 2))
        return coefficients_of(router)

    assert learned(Ending.OK, 100) == learned(Ending.CANCELLED, 100)
    assert learned(Ending.OK, 1000)["b"] > 2 * learned(Ending.OK, 100)["b"]
