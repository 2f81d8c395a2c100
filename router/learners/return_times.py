"""How long a session stays away after an answer: running means of the logarithms of gaps.

A gap is the time from the end of an answer to the next request of its session, in seconds. It depends on why the answer
ended, on the tool that was called, and on who runs it. So there are means of these classes, each shrunk to the one
before it, where n is the number of gaps that the class has seen, up to its own bound:

    kind        why the answer ended; all sessions                        the last 200 gaps or so
    tool        the tool that was called; all sessions                    the last 50
    session     this session's gaps of this kind, or after this tool      the last 8

    m(class) = (n mean(class) + PRIOR m(class before it)) / (n + PRIOR),        predicted gap = exp m(session)

Means over "the last k" are exponential ones: m <- m + (x - m) / min(n, k). Memory: one small entry for each kind, for
at most MOST_TOOLS tools, and for at most MOST_CLASSES classes of each session that is not forgotten.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from router.types import Stop

KIND_GAPS, TOOL_GAPS, SESSION_GAPS = 200, 50, 8
PRIOR = 2.0
FIRST_GUESS_S = 30.0  # before anything is known
MOST_TOOLS, MOST_CLASSES = 1024, 16
LEAST_S, MOST_S = 1e-3, 1e6


@dataclass(slots=True)
class _Mean:
    mean: float
    count: int = 0

    def learn(self, value: float, most: int) -> None:
        self.count = min(self.count + 1, most)
        self.mean += (value - self.mean) / self.count

    def shrunk_to(self, other: float) -> float:
        return (self.count * self.mean + PRIOR * other) / (self.count + PRIOR)


class ReturnTimes:
    """Learns the gaps of all sessions, which are known by their ids."""

    def __init__(self) -> None:
        self._kinds: dict[Stop, _Mean] = {}
        self._tools: dict[str, _Mean] = {}
        """The tool that was called last comes last."""
        self._sessions: dict[str, dict[Stop | str, _Mean]] = {}

    def learn_one(self, session: str, stop: Stop, tool: str | None, gap_s: float) -> None:
        """The session came back. stop, tool: how its last answer ended. gap_s: seconds from then."""
        log_s = math.log(min(max(gap_s, LEAST_S), MOST_S))
        self._kinds.setdefault(stop, _Mean(0.0)).learn(log_s, KIND_GAPS)
        if tool is not None:
            mean = self._tools[tool] = self._tools.pop(tool) if tool in self._tools else _Mean(0.0)
            mean.learn(log_s, TOOL_GAPS)
            if len(self._tools) > MOST_TOOLS:
                del self._tools[next(iter(self._tools))]
        classes = self._sessions.setdefault(session, {})
        for name in (stop,) if tool is None else (stop, tool):
            if name in classes or len(classes) < MOST_CLASSES:
                classes.setdefault(name, _Mean(0.0)).learn(log_s, SESSION_GAPS)

    def predict_one(self, session: str, stop: Stop, tool: str | None) -> float:
        """How long the session will stay away after an answer that ended so, seconds."""
        kind, classes = self._kinds.get(stop), self._sessions.get(session, {})
        expected = math.log(FIRST_GUESS_S) if kind is None else kind.shrunk_to(math.log(FIRST_GUESS_S))
        for mean in (classes.get(stop), None if tool is None else self._tools.get(tool), classes.get(tool or "")):
            if mean is not None:
                expected = mean.shrunk_to(expected)
        return math.exp(expected)

    def forget(self, session: str) -> None:
        """Nothing is kept of the session itself. What it has taught of its kinds and tools stays."""
        self._sessions.pop(session, None)
