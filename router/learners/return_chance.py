"""The chance that an idle session comes back within some time, learned from how long sessions stay away.

An idle session has an age, the time since its last answer ended. Ages are cut into intervals at EDGES_S. For each kind
of ending q and each interval j the hazard is learned, the chance that a session which has reached the interval comes
back within it:

    h(q, j) = returned / (returned + stayed + DOUBT)

`stayed` counts the sessions whose age has passed the interval, so those that have not come back yet teach as well as
those that have (Kaplan and Meier 1958). Both counts fade by FADE with each session that leaves the interval. Then

    P(back within T | q, age in j) = 1 - product over the intervals k from j up to T of (1 - h(q, k))

where an interval that T cuts counts by its part. What is not known counts as no chance.
"""

from __future__ import annotations

from router.types import Stop

EDGES_S = tuple(float(1 << power) for power in range(13))  # 1 s to 4,096 s
INTERVALS = len(EDGES_S)
"""Ages beyond the last edge belong to no interval: such a session is not expected any more."""
FADE = 0.998
DOUBT = 4.0  # sessions that are taken to have stayed away before any was seen


class ReturnChance:
    """Call `back` for each idle session that comes back, and `stayed` for each that has passed an interval."""

    def __init__(self) -> None:
        self._returned = {kind: [0.0] * INTERVALS for kind in Stop}
        self._stayed = {kind: [0.0] * INTERVALS for kind in Stop}

    def back(self, kind: Stop, interval: int) -> None:
        """A session whose age is in the interval has come back."""
        self._count(self._returned, kind, interval)

    def stayed(self, kind: Stop, interval: int) -> None:
        """A session has reached the end of the interval."""
        self._count(self._stayed, kind, interval)

    def within(self, kind: Stop, horizon_s: float) -> list[float]:
        """For each interval, the chance that a session at its beginning comes back within so many seconds."""
        chances = []
        for first in range(INTERVALS):
            end_s, away = _start_s(first) + horizon_s, 1.0
            for interval in range(first, INTERVALS):
                start_s = _start_s(interval)
                if start_s >= end_s:
                    break
                part = min(1.0, (end_s - start_s) / (EDGES_S[interval] - start_s))
                away *= (1.0 - self._hazard(kind, interval)) ** part
            chances.append(1.0 - away)
        return chances

    def _hazard(self, kind: Stop, interval: int) -> float:
        returned = self._returned[kind][interval]
        return returned / (returned + self._stayed[kind][interval] + DOUBT)

    def _count(self, counts: dict[Stop, list[float]], kind: Stop, interval: int) -> None:
        self._returned[kind][interval] *= FADE
        self._stayed[kind][interval] *= FADE
        counts[kind][interval] += 1.0


def _start_s(interval: int) -> float:
    return EDGES_S[interval - 1] if interval else 0.0
