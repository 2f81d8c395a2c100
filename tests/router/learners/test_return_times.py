import math
import random
from collections.abc import Sequence

import pytest

from router.learners import return_times
from router.learners.return_times import FIRST_GUESS_S, MOST_CLASSES, MOST_TOOLS, PRIOR, ReturnTimes
from router.types import Stop

Gap = tuple[str, Stop, str | None, float]


def mean_of(gaps: Sequence[float], most: int) -> tuple[float, int]:
    """The mean that forgets, and how many gaps it stands for."""
    mean, count = 0.0, 0
    for gap_s in gaps:
        count = min(count + 1, most)
        mean += (math.log(gap_s) - mean) / count
    return mean, count


def expected(gaps: Sequence[Gap], session: str, stop: Stop, tool: str | None) -> float:
    """The prediction from all gaps at once, as the equation has it."""
    chain = [
        ([g for _, k, _, g in gaps if k is stop], 200),
        ([g for s, k, _, g in gaps if (s, k) == (session, stop)], 8),
    ]
    if tool is not None:
        chain += [
            ([g for _, _, t, g in gaps if t == tool], 50),
            ([g for s, _, t, g in gaps if (s, t) == (session, tool)], 8),
        ]
    value = math.log(FIRST_GUESS_S)
    for seen, most in chain:
        mean, count = mean_of(seen, most)
        value = (count * mean + PRIOR * value) / (count + PRIOR)
    return math.exp(value)


def test_predictions_are_those_of_the_equation() -> None:
    rng, times, gaps = random.Random(1), ReturnTimes(), list[Gap]()
    for _ in range(300):
        session, stop = str(rng.randrange(5)), rng.choice(list(Stop))
        tool = rng.choice(["read", "test", "search"]) if stop is Stop.TOOL else None
        assert times.predict_one(session, stop, tool) == pytest.approx(expected(gaps, session, stop, tool))
        gaps.append((session, stop, tool, rng.lognormvariate(2, 1)))
        times.learn_one(*gaps[-1])


def test_a_tool_and_its_user_are_told_apart() -> None:
    times = ReturnTimes()
    for session in range(20):
        for _ in range(8):
            times.learn_one(str(session), Stop.TOOL, "read", 1.0)
            times.learn_one(str(session), Stop.TOOL, "test", 100.0 if session else 10.0)
            times.learn_one(str(session), Stop.TURN, None, 600.0)
    assert times.predict_one("99", Stop.TOOL, "read") < 1.6
    assert 50 < times.predict_one("99", Stop.TOOL, "test") < 110
    assert times.predict_one("0", Stop.TOOL, "test") < 0.3 * times.predict_one("1", Stop.TOOL, "test")
    assert 500 < times.predict_one("99", Stop.TURN, None) < 700


@pytest.mark.parametrize("gap_s", [0.0, -1.0, 1e300, math.inf])
def test_gaps_that_cannot_be_leave_predictions_finite(gap_s: float) -> None:
    times = ReturnTimes()
    times.learn_one("1", Stop.TOOL, "read", gap_s)
    assert return_times.LEAST_S <= times.predict_one("1", Stop.TOOL, "read") <= return_times.MOST_S


def test_memory_is_bounded_whatever_models_call_their_tools() -> None:
    times = ReturnTimes()
    for number in range(2000):
        times.learn_one("1", Stop.TOOL, f"tool {number}", 1.0)
    assert len(times._tools) == MOST_TOOLS
    assert len(times._sessions["1"]) == MOST_CLASSES
    times.forget("1")
    times.forget("1")
    assert not times._sessions
