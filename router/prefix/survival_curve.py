"""How likely a cached block survives, by how much was touched after it: learned from what answers report.

A bin's chance is the decayed share of blocks found, shrunk to itself shrunk to an optimistic prior, so that the prior
gives way with the square of the evidence; and never above a younger bin's.
"""

from __future__ import annotations

from collections.abc import Sequence

from router.saved_state import SavedFields, SavedState

EDGES = (0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875, 1.0, 1.25, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0)
BINS = len(EDGES) + 1
PRIOR = (1.0, 0.98, 0.95, 0.92, 0.9, 0.87, 0.83, 0.8, 0.75, 0.7, 0.6, 0.5, 0.4, 0.3, 0.25, 0.2)
"""Optimistic, so that old copies are tried and the curve is learned."""
PRIOR_WEIGHT = 2.0
DECAY = 0.98  # of a bin's evidence, with each answer that tells of it


class SurvivalCurve:
    """S: chance of survival by bin of rank, never rising. Shared by the engines of one order."""

    def __init__(self) -> None:
        self._tried = [0.0] * BINS
        self._found = [0.0] * BINS
        self.chance = list(PRIOR)

    def learn(self, told: Sequence[tuple[int, float]]) -> None:
        """One answer: (bin, share of its blocks in that bin that were found)."""
        for bin_, share in told:
            self._tried[bin_] = DECAY * self._tried[bin_] + 1.0
            self._found[bin_] = DECAY * self._found[bin_] + share
        self._publish()

    def dump(self) -> SavedState:
        return {"tried": list(self._tried), "found": list(self._found)}

    def load(self, state: SavedFields) -> None:
        """Raises SnapshotError, also for another number of bins."""
        self._tried, self._found = state.numbers("tried", BINS, low=0.0), state.numbers("found", BINS, low=0.0)
        self._publish()

    def _publish(self) -> None:
        lowest = 1.0
        for bin_, prior in enumerate(PRIOR):
            found, tried = self._found[bin_], self._tried[bin_] + PRIOR_WEIGHT
            estimate = (found + PRIOR_WEIGHT * (found + PRIOR_WEIGHT * prior) / tried) / tried
            lowest = self.chance[bin_] = min(lowest, estimate)
