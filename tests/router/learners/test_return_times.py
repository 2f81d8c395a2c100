"""Return times against a slow and obvious reference, and the edges of what is remembered."""

import math
import random
from statistics import fmean

import pytest

from router.learners.return_times import ENDINGS, LOST_S, SESSIONS, TOOLS, ReturnTimes
from router.types import Stop

Ending = tuple[str, Stop, str | None]


class Reference:
    """Keeps every gap, and computes each mean from its list."""

    def __init__(self) -> None:
        self.gaps: list[tuple[str, Stop, str | None, float]] = []

    def seconds(self, session: str, kind: Stop, tool: str | None) -> float | None:
        levels = [
            [g for _, _, _, g in self.gaps][-200:],
            [g for _, k, _, g in self.gaps if k == kind][-200:],
            [g for _, k, t, g in self.gaps if (k, t) == (kind, tool) and tool is not None][-200:],
            [g for s, k, t, g in self.gaps if (s, k, t) == (session, kind, tool)][-8:],
        ]
        if not levels[0]:
            return None
        value = fmean(levels[0])
        for gaps in levels[1:]:
            value = (sum(gaps) + 2 * value) / (len(gaps) + 2)
        return math.exp(value)


@pytest.mark.parametrize("seed", range(3))
def test_predictions_are_those_of_the_reference(seed: int) -> None:
    chance, learner, reference = random.Random(seed), ReturnTimes(), Reference()
    now, waiting = 0.0, dict[str, tuple[float, Stop, str | None]]()
    for _ in range(2000):
        now += chance.expovariate(1)
        session = f"session {chance.randrange(6)}"
        if session in waiting:
            since, kind, tool = waiting.pop(session)
            assert learner.arrived(session, now) == pytest.approx(max(0.1, now - since))
            reference.gaps.append((session, kind, tool, math.log(max(0.1, now - since))))
        else:
            assert learner.arrived(session, now) is None
        kind = chance.choice(list(Stop))
        tool = chance.choice(["read", "test", None]) if kind == Stop.TOOL_CALL else None
        found = learner.answered(session, kind, now, tool).seconds
        waiting[session] = now, kind, tool
        expected = reference.seconds(session, kind, tool)
        assert found is expected is None or found == pytest.approx(expected)
        assert learner.predict(session, kind, tool).seconds == found


def test_golden() -> None:
    """By hand: two gaps of 10 s after tool calls, one of 1,000 s after a turn."""
    learner = ReturnTimes()
    for begin, gap, kind in ((0, 10, Stop.TOOL_CALL), (100, 10, Stop.TOOL_CALL), (200, 1000, Stop.END_OF_TURN)):
        learner.answered("a", kind, begin)
        learner.arrived("a", begin + gap)
    # In powers of ten: all 5/3; after a tool call (1 + 1 + 2 * 5/3) / 4 = 4/3, of the session (1 + 1 + 2 * 4/3) / 4.
    assert learner.predict("a", Stop.TOOL_CALL).seconds == pytest.approx(10 ** (7 / 6))
    assert learner.predict("b", Stop.TOOL_CALL).seconds == pytest.approx(10 ** (4 / 3))
    assert learner.predict("b", Stop.UNKNOWN).seconds == pytest.approx(10 ** (5 / 3))


def test_parallel_requests_teach_once() -> None:
    learner = ReturnTimes()
    assert learner.arrived("a", 0.0) is None
    learner.answered("a", Stop.TOOL_CALL, 1.0)
    assert learner.arrived("a", 5.0) == 4.0
    assert learner.arrived("a", 5.0) is None


def test_the_chance_that_nobody_returns_is_learned_by_kind() -> None:
    learner = ReturnTimes()
    assert learner.predict("x", Stop.END_OF_TURN).never == 0.5
    for number in range(300):
        now = 10.0 * number
        learner.answered(f"turn {number}", Stop.END_OF_TURN, now)
        learner.answered(f"tool {number}", Stop.TOOL_CALL, now)
        if number % 2:
            learner.arrived(f"turn {number}", now + 1)
        learner.arrived(f"tool {number}", now + 1)
    learner.answered("last", Stop.UNKNOWN, 3000 + LOST_S)
    assert learner.predict("x", Stop.END_OF_TURN).never == pytest.approx(0.5, abs=0.2)
    assert learner.predict("x", Stop.TOOL_CALL).never < 0.02
    assert len(learner) == 1 + 150 + 300  # the lost ones are forgotten


def test_memory_is_bounded() -> None:
    learner = ReturnTimes()
    for number in range(SESSIONS + 50):
        learner.answered(f"{number}", Stop.TOOL_CALL, 1e-3 * number, f"tool {number}")
        if number % 2:
            learner.arrived(f"{number}", 1e-3 * number + 1e-4)
    assert len(learner) == SESSIONS
    assert len(learner._answers) <= SESSIONS
    assert len(learner._tools) == TOOLS
    assert learner.arrived("0", 100.0) is None
    for number in range(ENDINGS + 5):
        learner.answered("me", Stop.TOOL_CALL, 20.0, f"tool {number}")
        learner.arrived("me", 20.0)
    assert len(learner._sessions["me"]) == ENDINGS


def test_a_session_that_is_over_is_forgotten() -> None:
    learner = ReturnTimes()
    learner.answered("a", Stop.TOOL_CALL, 0.0)
    learner.forget("a")
    learner.forget("a")
    assert len(learner) == 0
    assert learner.arrived("a", 1.0) is None
