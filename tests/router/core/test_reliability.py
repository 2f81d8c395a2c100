"""Engines that fail: when they are left out, how they come back, and who is to blame."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from router.core.reliability import BASE_S, MOST_S, SPARE
from router.core.router import Router
from router.types import Decision, Ending, EngineId, Outcome
from tests.support.virtual_fleet import ask_for, router_with

E0, E1, E2 = (EngineId(f"e{n}") for n in range(3))


def route(router: Router, now: float, exclude: tuple[EngineId, ...] = ()) -> Decision:
    return router.route(ask_for(random.getrandbits(40)), now, exclude=exclude)


def end(router: Router, decision: Decision, ending: Ending, now: float) -> None:
    router.complete(decision, Outcome(ending, now, None if ending is not Ending.OK else now, 64, 0, 8))


def try_until_answered(router: Router, bad: dict[EngineId, Ending], now: float) -> list[EngineId]:
    """One request, which is retried as the gateway does. Returns where it went."""
    tried: tuple[EngineId, ...] = ()
    while True:
        decision = route(router, now, tried)
        tried = (*tried, decision.engine)
        end(router, decision, bad.get(decision.engine, Ending.OK), now + 0.001)
        if decision.engine not in bad:
            return list(tried)


@pytest.mark.parametrize("policy", ["lbgr", "round_robin", "least_loaded", "random", "cache_aware"])
@pytest.mark.parametrize("ending", [Ending.ENGINE_FAILED, Ending.ENGINE_LOST, Ending.TIMEOUT])
def test_engines_that_fail_at_once_lose_few_requests(policy: str, ending: Ending) -> None:
    router = router_with(3, policy)
    tries = Counter[EngineId]()
    for n in range(300):
        tries.update(try_until_answered(router, {E0: ending, E1: ending}, n * 0.01))
    assert tries[E2] == 300
    assert tries[E0] + tries[E1] <= 12
    if policy != "lbgr":  # which asks neither of them again, because of what their failures cost
        assert {router.status().engines[e].share for e in (E0, E1)} == {"ejected"}
    assert router.status().engines[E2].share == "full"


def test_the_last_engine_always_gets_requests() -> None:
    router = router_with(2, "round_robin")
    for n in range(50):
        end(router, route(router, n * 0.01), Ending.ENGINE_LOST, n * 0.01)
    assert {router.status().engines[e].share for e in (E0, E1)} == {"ejected"}
    assert {route(router, 0.6 + n * 0.001).engine for n in range(10)} == {E0, E1}


def test_a_request_that_fails_everywhere_takes_no_engine_out() -> None:
    router = router_with(3, "round_robin")
    for n in range(40):
        tried: tuple[EngineId, ...] = ()
        for _ in range(3):
            decision = route(router, n * 0.1, tried)
            tried = (*tried, decision.engine)
            end(router, decision, Ending.ENGINE_FAILED, n * 0.1)
        end(router, route(router, n * 0.1), Ending.OK, n * 0.1)
    assert {engine.share for engine in router.status().engines.values()} == {"full"}


@pytest.mark.parametrize("ending", [Ending.REJECTED, Ending.CANCELLED, Ending.GATEWAY_FAULT])
def test_what_is_not_the_engines_fault_counts_nothing(ending: Ending) -> None:
    router = router_with(2, "round_robin")
    for n in range(100):
        end(router, route(router, n * 0.1), ending, n * 0.1)
    assert {(e.share, e.failure_rate) for e in router.status().engines.values()} == {("full", 0.0)}


def test_an_engine_that_fails_most_of_the_time_is_left_out_though_it_answers_in_between() -> None:
    router = router_with(2, "round_robin")
    for n in range(60):
        decision = route(router, n * 0.01)
        bad = decision.engine == E0 and n % 8 > 1
        end(router, decision, Ending.ENGINE_LOST if bad else Ending.OK, n * 0.01)
    assert router.status().engines[E0].ejections >= 1


def ejected(policy: str = "round_robin") -> tuple[Router, float]:
    router, now = router_with(3, policy), 0.0
    while router.status().engines[E0].share == "full":
        now += 0.01
        try_until_answered(router, {E0: Ending.ENGINE_LOST}, now)
    return router, now


def test_a_returned_engine_gets_one_request_at_a_time_and_then_more() -> None:
    router, now = ejected()
    assert all(route(router, now + BASE_S * 0.9).engine != E0 for _ in range(6))
    now += BASE_S + 0.1
    held: list[Decision] = []
    most = []
    for _ in range(12):  # each round leaves requests in flight, and then answers all of the engine's
        for _ in range(40):
            held.append(route(router, now))
        of_it = [decision for decision in held if decision.engine == E0]
        most.append(len(of_it))
        for decision in held:
            end(router, decision, Ending.OK, now + 0.5)
        held.clear()
        now += 1.0
    assert most[0] == 1
    assert most[:4] == [1, 2, 4, 8]
    assert most[-1] in (13, 14)  # a third of 40: its full share
    assert router.status().engines[E0].share == "full"


def test_an_engine_that_still_fails_on_its_return_is_left_out_for_longer() -> None:
    router, now = ejected()
    gaps, before = [], now
    for _ in range(8):
        while E0 not in try_until_answered(router, {E0: Ending.ENGINE_LOST}, now):
            now += 0.05
        gaps.append(now - before)
        before = now
    assert gaps[0] == pytest.approx(BASE_S, abs=0.2)
    assert gaps[1] == pytest.approx(2 * BASE_S, abs=0.2)
    assert gaps[-1] == pytest.approx(MOST_S, abs=0.2)
    assert router.status().engines[E0].ejections == 9


def test_late_failures_of_an_engine_that_is_out_do_not_prolong_it() -> None:
    router = router_with(2, "round_robin")
    held = [route(router, 0.0) for _ in range(20)]
    for decision in held:
        end(router, decision, Ending.ENGINE_LOST if decision.engine == E0 else Ending.OK, 1.0)
    assert router.status().engines[E0].ejections == 1
    assert E0 in {route(router, 1.0 + BASE_S + 0.1).engine for _ in range(4)}


def test_an_engine_whose_health_returns_begins_slowly_but_not_at_the_start() -> None:
    router = router_with(2, "least_loaded")
    assert {engine.share for engine in router.status().engines.values()} == {"full"}
    router.set_health(E0, False)
    held = [route(router, 1.0) for _ in range(20)]
    router.set_health(E0, True)
    assert router.status().engines[E0].share == "returning"
    chosen = [route(router, 2.0) for _ in range(30)]  # least_loaded would send all of them to the empty engine
    assert sum(decision.engine == E0 for decision in chosen) == 1
    for decision in (*held, *chosen):
        end(router, decision, Ending.OK, 3.0)
    for n in range(SPARE + 2):
        end(router, route(router, 4.0 + n), Ending.OK, 4.5 + n)
    assert router.status().engines[E0].share == "full"


def test_failures_are_priced_before_they_lead_to_more() -> None:
    router = router_with(2, "lbgr")
    decision = route(router, 0.0)
    end(router, decision, Ending.ENGINE_LOST, 0.1)
    after = []
    for n in range(1, 10):  # one after the other, so that both engines would cost the same
        after.append(route(router, n * 1.0))
        end(router, after[-1], Ending.OK, n + 0.2)
    assert decision.engine not in {each.engine for each in after}


def test_failures_are_forgiven_with_time() -> None:
    router = router_with(2, "lbgr")
    decision = route(router, 0.0)
    end(router, decision, Ending.ENGINE_LOST, 0.1)
    rates = []
    for n in range(20):
        rates.append(router.status().engines[decision.engine].failure_rate)
        end(router, route(router, n * 10.0, (decision.engine,)), Ending.OK, n * 10.0 + 1.0)
    assert rates[0] == pytest.approx(0.1)
    assert rates == sorted(rates, reverse=True)
    assert rates[-1] == 0.0


def test_a_removed_engine_leaves_nothing() -> None:
    router, now = ejected()
    router.remove_engine(E0)
    router.add_engine(E0)
    router.set_health(E0, True)
    assert router.status().engines[E0].share == "full"
    assert router.status().engines[E0].ejections == 0
    assert E0 in {route(router, now).engine for _ in range(3)}


def test_silence() -> None:
    router = router_with(2, "round_robin")
    assert not router.is_silent(E0, 1e6)
    decision = route(router, 0.0)
    assert not router.is_silent(decision.engine, 29.0)
    assert router.is_silent(decision.engine, 31.0)
    route(router, 30.0)
    assert router.is_silent(decision.engine, 32.0), "new requests are no sign of life"
    router.heard(decision.engine, 31.0)
    assert not router.is_silent(decision.engine, 32.0)
    assert router.is_silent(decision.engine, 62.0)
    end(router, decision, Ending.OK, 62.0)
    assert not router.is_silent(decision.engine, 63.0)


def test_who_waits_is_moved_only_if_another_engine_can_serve() -> None:
    router, out = router_with(2, "round_robin"), list[EngineId]()
    router.on_out = out.append
    router.take_out(E0)
    assert out == [E0]
    router.take_out(E1)
    assert out == [E0]
