"""Whether latency predictions have come to be wrong in one direction, engine by engine.

    error = (actual - predicted) / predicted, at most MOST_ERROR       alarm:  |mean of the last N| > bound
                                                                       again off:  < CALM bound

A fair predictor errs to both sides, so its mean stays small; after a change of hardware, model or traffic that the
policy does not follow, it does not. N answers must be there first, for either. Memory: N floats an engine.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from router.types import EngineId

MOST_ERROR = 4.0  # one hiccup must not ring the alarm alone
CALM = 0.5


@dataclass(slots=True)
class _Window:
    errors: deque[float]
    total: float = 0.0
    alarm: bool = False


class DriftAlarm:
    """answers: N, at least 1. bound: of the mean error, above 0."""

    def __init__(self, answers: int, bound: float) -> None:
        self._answers, self._bound = answers, bound
        self._windows: dict[EngineId, _Window] = {}

    def learn_one(self, engine: EngineId, predicted_s: float, actual_s: float) -> None:
        """One answer. A prediction of nothing says nothing."""
        if predicted_s <= 0:
            return
        window = self._windows.setdefault(engine, _Window(deque(maxlen=self._answers)))
        if len(window.errors) == self._answers:
            window.total -= window.errors[0]
        window.errors.append(min(MOST_ERROR, (actual_s - predicted_s) / predicted_s))
        window.total += window.errors[-1]
        if len(window.errors) == self._answers:
            limit = self._bound * CALM if window.alarm else self._bound
            window.alarm = abs(window.total) > limit * self._answers

    def alarms(self) -> dict[EngineId, bool]:
        """Of every engine that gave an answer to a prediction."""
        return {engine: window.alarm for engine, window in self._windows.items()}

    def mean(self, engine: EngineId) -> float | None:
        """The mean error of the last answers, fewer than N at first; None if there are none."""
        window = self._windows.get(engine)
        return window.total / len(window.errors) if window else None

    def forget(self, engine: EngineId) -> None:
        self._windows.pop(engine, None)

    def clear(self) -> None:
        """Another policy predicts."""
        self._windows.clear()
