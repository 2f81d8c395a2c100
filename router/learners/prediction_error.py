"""Whether a latency model is so wrong that its choices are worth less than those of a rule without one.

    error = |actual - predicted| / predicted       on: median of the last N > bound       off again: < CALM bound

The median, since a few answers far off (of a stalled engine, of an unforeseen length) say nothing of the model. Unlike
the drift alarm (`drift`) it asks how far off, not to which side, and of the fleet, not of one engine.
"""

from __future__ import annotations

from collections import deque
from statistics import median

from router.saved_state import Fields, State, number

ANSWERS = 64  # N
LEAST_ANSWERS = 16  # before so many nothing is said
CALM = 0.5
MOST_ERROR = 1e6


class ErrorAlarm:
    """bound: of the median error, above 0. At most ANSWERS numbers are kept."""

    def __init__(self, bound: float) -> None:
        self._bound = bound
        self._errors: deque[float] = deque(maxlen=ANSWERS)
        self.alarm = False

    def learn_one(self, predicted_s: float, actual_s: float) -> None:
        """One answer. To have predicted nothing is to be wrong by any measure."""
        error = abs(actual_s - predicted_s) / predicted_s if predicted_s > 0 else MOST_ERROR
        self._errors.append(min(MOST_ERROR, error))
        if len(self._errors) >= LEAST_ANSWERS:
            self.alarm = median(self._errors) > self._bound * (CALM if self.alarm else 1.0)

    def dump(self) -> State:
        return {"errors": list(self._errors), "alarm": self.alarm}

    def load(self, state: Fields) -> None:
        """Raises SnapshotError."""
        errors = [number(value, place, 0.0, MOST_ERROR) for place, value in state.items("errors", ANSWERS)]
        self.alarm = state.flag("alarm")
        self._errors = deque(errors, maxlen=ANSWERS)
