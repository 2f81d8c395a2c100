"""The chance of a return, against sessions whose times are known."""

from __future__ import annotations

import math
import random
from bisect import bisect_right

import pytest

from router.learners.return_chance import EDGES_S, INTERVALS, ReturnChance
from router.types import Stop


def teach(learner: ReturnChance, kind: Stop, away_s: float) -> None:
    """One session that is away for so long; infinite: for ever."""
    last = bisect_right(EDGES_S, away_s)
    for interval in range(min(last, INTERVALS)):
        learner.stayed(kind, interval)
    if last < INTERVALS:
        learner.back(kind, last)


def test_nothing_is_known_at_first() -> None:
    assert ReturnChance().within(Stop.TOOL_CALL, math.inf) == [0.0] * INTERVALS


@pytest.mark.parametrize("seed", range(3))
def test_the_chance_is_the_part_of_the_sessions_that_return_in_time(seed: int) -> None:
    """Exponential times away of 20 s in the mean, and three of ten sessions that never return."""
    chance, learner = random.Random(seed), ReturnChance()
    for _ in range(5000):
        teach(learner, Stop.END_OF_TURN, math.inf if chance.random() < 0.3 else chance.expovariate(1 / 20))
    within = learner.within(Stop.END_OF_TURN, 16.0)
    for interval, age_s in ((0, 0.0), (4, 8.0), (5, 16.0)):
        still = 0.7 * math.exp(-age_s / 20) + 0.3
        expected = 0.7 * (math.exp(-age_s / 20) - math.exp(-(age_s + 16) / 20)) / still
        assert within[interval] == pytest.approx(expected, abs=0.08)
    assert within[9] < 0.05  # whoever has been away for 256 s is one of those that never return


def test_kinds_are_apart_and_a_longer_horizon_is_never_less() -> None:
    learner = ReturnChance()
    for _ in range(50):
        teach(learner, Stop.TOOL_CALL, 3.0)
    short, long = learner.within(Stop.TOOL_CALL, 3.0), learner.within(Stop.TOOL_CALL, 30.0)
    assert all(a <= b for a, b in zip(short, long, strict=True))
    assert long[0] > 0.9 > short[0] > 0.0
    assert learner.within(Stop.END_OF_TURN, 30.0) == [0.0] * INTERVALS


def test_it_follows_a_change() -> None:
    learner = ReturnChance()
    for _ in range(2000):
        teach(learner, Stop.TOOL_CALL, 3.0)
    for _ in range(2000):
        teach(learner, Stop.TOOL_CALL, 3000.0)
    assert learner.within(Stop.TOOL_CALL, 30.0)[0] < 0.1
