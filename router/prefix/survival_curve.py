"""How likely a cached block survives, by how much was touched after it; learned from what answers report.

    q_b = (found_b + w prior_b) / (tried_b + w)
    S_b = min(S_(b-1), (found_b + w q_b) / (tried_b + w))            chance that a block in bin b is still cached

tried_b, found_b: decayed sums over the answers that had blocks in bin b, of 1 and of the share of those blocks that was
found; w: PRIOR_WEIGHT. The estimate is shrunk towards q_b, which is itself the estimate shrunk towards an optimistic
prior, so that the influence of the prior falls with the square of the evidence. A bin's chance is never above that of a
younger bin.
"""

from __future__ import annotations

from collections.abc import Sequence

from router.saved_state import SavedFields, SavedState

EDGES = (0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875, 1.0, 1.25, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0)
"""Ranks at which a bin ends and the next one begins, in capacities."""
BINS = len(EDGES) + 1
PRIOR = (1.0, 0.98, 0.95, 0.92, 0.9, 0.87, 0.83, 0.8, 0.75, 0.7, 0.6, 0.5, 0.4, 0.3, 0.25, 0.2)
"""Chance of survival by bin before any answer. It is optimistic, so that old copies are tried and the curve is
learned."""
PRIOR_WEIGHT = 2.0
DECAY = 0.98  # what a new answer about a bin leaves of the older evidence


class SurvivalCurve:
    """S: the chance of survival by bin of rank, which never rises with age. Engines of one eviction order share it."""

    def __init__(self) -> None:
        self._tried = [0.0] * BINS
        self._found = [0.0] * BINS
        self.chance = list(PRIOR)

    def learn(self, shares: Sequence[tuple[int, float]]) -> None:
        """Learn from one answer. shares: (bin, share of the prompt's blocks in that bin that were found)."""
        for bin_, share in shares:
            self._tried[bin_] = DECAY * self._tried[bin_] + 1.0
            self._found[bin_] = DECAY * self._found[bin_] + share
        self._publish()

    def surely(self, bin_: int) -> float:
        """A chance that the bin has at least, so far as answers have shown it: the prior counts as blocks not found."""
        return min(self.chance[bin_], self._found[bin_] / (self._tried[bin_] + PRIOR_WEIGHT))

    def dump(self) -> SavedState:
        return {"tried": list(self._tried), "found": list(self._found)}

    def load(self, state: SavedFields) -> None:
        """Raises SnapshotError, also if it was saved with another number of bins."""
        self._tried, self._found = state.numbers("tried", BINS, low=0.0), state.numbers("found", BINS, low=0.0)
        self._publish()

    def _publish(self) -> None:
        lowest = 1.0
        for bin_, prior in enumerate(PRIOR):
            found, tried = self._found[bin_], self._tried[bin_] + PRIOR_WEIGHT
            estimate = (found + PRIOR_WEIGHT * (found + PRIOR_WEIGHT * prior) / tried) / tried
            lowest = self.chance[bin_] = min(lowest, estimate)
