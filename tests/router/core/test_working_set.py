"""What sessions want of the caches."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator

import pytest

from router.core.working_set import WorkingSet
from router.types import EngineId, EngineInfo, EngineView, Stop

E0, E1 = EngineId("engine-0"), EngineId("engine-1")


def view(engine: EngineId, capacity: float = 1000.0, in_flight: int = 1) -> EngineView:
    return EngineView(engine, EngineInfo(), in_flight, 0, capacity_tokens=capacity)


VIEWS = [view(E0), view(E1)]


def play(known: WorkingSet, gap_s: float, until_s: float, sessions: int = 4) -> float:
    """Let so many sessions of 100 tokens each on E0 come back again and again. Returns the time of the end."""
    now = 0.0
    while now < until_s:
        for number in range(sessions):
            known.runs(f"t{number}", E0, 100.0, 1.0, now)
            known.idles(f"t{number}", Stop.TOOL_CALL, 100.0, now)
        now += gap_s
    for number in range(sessions):
        known.came(f"t{number}", now)
    known.renew(VIEWS, now + 2.0)
    return now + 2.0


def test_running_sessions_count_in_full_and_those_that_may_return_by_their_chance() -> None:
    known = WorkingSet()
    now = play(known, gap_s=5.0, until_s=500.0)
    known.runs("a", E0, 700.0, 700.0, now)
    assert known.excess(VIEWS[0], "b", 300.0) == 0.0
    assert known.excess(VIEWS[0], "b", 400.0) == pytest.approx(100.0)
    assert known.excess(VIEWS[1], "b", 400.0) == 0.0
    known.idles("a", Stop.TOOL_CALL, 700.0, now)
    assert 50.0 < known.excess(VIEWS[0], "b", 400.0) < 100.0  # it is nearly sure to return
    known.idles("a", Stop.END_OF_TURN, 700.0, now)
    assert known.excess(VIEWS[0], "b", 400.0) == 0.0  # that nobody has been seen to do


def test_a_session_does_not_stand_in_its_own_way_and_asks_for_its_own_at_most() -> None:
    known = WorkingSet()
    known.runs("a", E0, 900.0, 900.0, 0.0)
    assert known.excess(VIEWS[0], "a", 950.0) == 0.0
    assert known.excess(VIEWS[0], None, 50.0) == 0.0
    assert known.excess(VIEWS[0], "b", 5000.0) == pytest.approx(4900.0)
    known.runs("c", E0, 900.0, 900.0, 0.0)
    assert known.excess(VIEWS[0], "b", 300.0) == pytest.approx(300.0)


@pytest.mark.parametrize("ending", ["forget", "engine_gone", "came", "moves"])
def test_what_a_session_wanted_is_forgotten(ending: str) -> None:
    known = WorkingSet()
    now = play(known, gap_s=5.0, until_s=500.0)
    known.runs("a", E0, 900.0, 900.0, now)
    if ending in ("came", "moves"):
        known.idles("a", Stop.TOOL_CALL, 900.0, now)
    assert known.excess(VIEWS[0], "b", 500.0) > 0
    match ending:
        case "forget":
            known.forget("a")
            known.forget("a")
        case "engine_gone":
            known.engine_gone(E0)
        case "came":
            known.came("a", now + 1)
        case "moves":
            known.runs("a", E1, 900.0, 0.0, now + 1)
            assert known.excess(VIEWS[1], "b", 500.0) == pytest.approx(400.0)
    known.idles("b", Stop.TOOL_CALL, 900.0, now)  # nothing is known of it, so nothing happens
    assert known.excess(VIEWS[0], "b", 500.0) == 0.0


def test_likely_returns_are_protected_and_unlikely_ones_are_not() -> None:
    likely, unlikely = WorkingSet(), WorkingSet()
    assert not WorkingSet().protects
    play(likely, gap_s=5.0, until_s=500.0)
    likely.runs("a", E0, 100.0, 0.0, 502.0)
    likely.idles("a", Stop.TOOL_CALL, 100.0, 502.0)
    likely.renew(VIEWS, 504.0)
    assert likely.protects
    for number in range(400):  # one of ten returns, after half a minute
        now = float(number)
        unlikely.runs(f"s{number}", E0, 100.0, 20.0, now)
        unlikely.idles(f"s{number}", Stop.END_OF_TURN, 100.0, now)
        if number > 30 and not number % 10:
            unlikely.runs(f"s{number - 30}", E0, 100.0, 20.0, now)
            unlikely.idles(f"s{number - 30}", Stop.END_OF_TURN, 100.0, now)
        unlikely.renew(VIEWS, now)
        assert not unlikely.protects


def test_the_horizon_is_what_the_caches_hold_over_the_rate_of_new_tokens() -> None:
    known = WorkingSet()
    assert known.horizon_s(VIEWS, 0.0) == math.inf
    for second in range(400):
        known.computes(20.0, float(second))
    assert known.horizon_s(VIEWS, 400.0) == pytest.approx(100.0, rel=0.02)
    assert known.horizon_s(VIEWS, 520.0) == pytest.approx(200.0, rel=0.12)  # a half-life later


@pytest.mark.parametrize("seed", range(5))
def test_the_running_sums_are_those_of_all_sessions(seed: int) -> None:
    """Sessions do what they like; in the end all are forgotten and nothing is wanted any more."""
    chance, known, now = random.Random(seed), WorkingSet(), 0.0
    names = [f"s{number}" for number in range(20)]

    def act() -> Iterator[None]:
        for _ in range(3000):
            yield
            name = chance.choice(names)
            match chance.randrange(6):
                case 0 | 1:
                    known.runs(name, chance.choice((E0, E1)), chance.uniform(0, 300), chance.uniform(0, 50), now)
                case 2 | 3:
                    known.idles(name, chance.choice(list(Stop)), chance.uniform(0, 300), now)
                case 4:
                    known.came(name, now)
                case _:
                    known.forget(name)

    for _ in act():
        now += chance.expovariate(1.0) * (100.0 if chance.random() < 0.05 else 1.0)
        known.renew(VIEWS, now)
        assert known.excess(VIEWS[0], None, 100.0) >= 0.0
        assert sum(map(len, known._ages)) <= len(known._shares) <= len(names)
    for name in names:
        known.forget(name)
    assert not any(known._ages)
    for each in VIEWS:
        assert known.excess(each, None, each.capacity_tokens) == pytest.approx(0.0, abs=1e-6)
