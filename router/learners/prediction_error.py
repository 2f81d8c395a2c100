"""Two alarms about latency predictions: they are wrong by a multiple (`ErrorAlarm`), or always to one side
(`DriftAlarm`).

    error     max(actual / predicted, predicted / actual) - 1    of the fleet    alarm:  median of the last 64 > bound
    drift     (actual - predicted) / predicted                   of an engine    alarm:  |mean of the last N| > bound
                                                                 either alarm ends below CALM * bound

The choices of a model that is wrong by a multiple are worse than those of a rule without a model, to whichever side it
is wrong: the error of a prediction that is k times too long is that of one which is k times too short. The median
decides, because a few answers that are far off (of a stalled engine, of an unforeseen length) say nothing about the
model. A fair predictor errs to both sides, so the mean of its errors stays small. The mean becomes large when hardware,
model or traffic change and the policy does not follow.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from router.saved_state import SavedFields, SavedState, number
from router.types import EngineId

ANSWERS = 64  # that the median is taken over
LEAST_ANSWERS = 16  # before this many answers the error alarm stays off
CALM = 0.5
MOST_ERROR = 1e6
MOST_DRIFT_ERROR = 4.0  # errors are cut here, so that one hiccup cannot raise the drift alarm alone


class ErrorAlarm:
    """The error alarm of the fleet. bound: of the median error, above 0. At most ANSWERS numbers are kept."""

    def __init__(self, bound: float) -> None:
        self._bound = bound
        self._errors: deque[float] = deque()
        self._sorted: list[float] = []  # the same errors: sorting them anew for each answer takes longer
        self.alarm = False

    def learn_one(self, predicted_s: float, actual_s: float) -> None:
        """Learn from one answer. A time of 0 counts as MOST_ERROR."""
        low_s, high_s = min(predicted_s, actual_s), max(predicted_s, actual_s)
        error = min(MOST_ERROR, high_s / low_s - 1.0) if low_s > 0 else MOST_ERROR
        if len(self._errors) == ANSWERS:
            del self._sorted[bisect_left(self._sorted, self._errors.popleft())]
        self._errors.append(error)
        insort(self._sorted, error)
        if len(self._errors) >= LEAST_ANSWERS:
            self.alarm = _median(self._sorted) > self._bound * (CALM if self.alarm else 1.0)

    def dump(self) -> SavedState:
        return {"errors": list(self._errors), "alarm": self.alarm}

    def load(self, state: SavedFields) -> None:
        """Raises SnapshotError."""
        errors = [number(value, place, 0.0, MOST_ERROR) for place, value in state.items("errors", ANSWERS)]
        self.alarm = state.flag("alarm")
        self._errors, self._sorted = deque(errors), sorted(errors)


def _median(ordered: Sequence[float]) -> float:
    middle = len(ordered) // 2
    return ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2


@dataclass(slots=True)
class _Window:
    errors: deque[float]
    total: float = 0.0
    alarm: bool = False


class DriftAlarm:
    """The drift alarm of each engine, which keeps N floats an engine.

    answers: N, at least 1; the alarm stays off until an engine has given N answers. bound: of the mean error, above 0.
    """

    def __init__(self, answers: int, bound: float) -> None:
        self._answers, self._bound = answers, bound
        self._windows: dict[EngineId, _Window] = {}

    def learn_one(self, engine: EngineId, predicted_s: float, actual_s: float) -> None:
        """Learn from one answer. A prediction of 0 is ignored."""
        if predicted_s <= 0:
            return
        window = self._windows.setdefault(engine, _Window(deque(maxlen=self._answers)))
        if len(window.errors) == self._answers:
            window.total -= window.errors[0]
        window.errors.append(min(MOST_DRIFT_ERROR, (actual_s - predicted_s) / predicted_s))
        window.total += window.errors[-1]
        if len(window.errors) == self._answers:
            limit = self._bound * CALM if window.alarm else self._bound
            window.alarm = abs(window.total) > limit * self._answers

    def alarms(self) -> dict[EngineId, bool]:
        """Whether the alarm is on, for every engine that answered a request with a prediction."""
        return {engine: window.alarm for engine, window in self._windows.items()}

    def mean(self, engine: EngineId) -> float | None:
        """The mean error of the engine's last N answers, or of fewer at first; None if there are none."""
        window = self._windows.get(engine)
        return window.total / len(window.errors) if window else None

    def forget(self, engine: EngineId) -> None:
        self._windows.pop(engine, None)

    def clear(self) -> None:
        """Forget all errors, because another policy predicts from now on."""
        self._windows.clear()
