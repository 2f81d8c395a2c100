"""Non-negative least squares, learned online with forgetting.

    minimise  sum_t d^(T-t) wt_t (y_t - w.x_t)^2  +  sum_k r_k (w_k - p_k)^2   over  w >= 0

This is solved by cyclic coordinate descent on the normal equations (A, v), starting from the last solution:

    w_k <- max(0, (v_k + r_k p_k - sum_{j != k} A_kj w_j) / (A_kk + r_k))

w: the coefficients; x_t, y_t, wt_t: the inputs, the target and the weight of sample t; T: the last sample; d: the decay
for each sample; p, r: the prior and its strength, which the owner may change; A, v: decayed sums of wt x x' and wt y x.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from operator import mul

from router.saved_state import SavedFields, SavedState

SWEEPS = 12  # of the coordinate descent
EAGER_SAMPLES = 50  # the system is solved after each of the first samples, later after every LAZY_PERIOD-th one
LAZY_PERIOD = 8


class NonNegativeLeastSquares:
    """With six coefficients a sample costs about 10 us and a solution about 50 us (CPython, one core)."""

    def __init__(self, prior: Sequence[float], strength: Sequence[float], decay: float = 0.995) -> None:
        self.prior = list(prior)
        self.strength = list(strength)
        """p and r above. The owner may change them in place; that takes effect at the next solution."""
        self.weights = tuple(prior)
        self.samples = 0
        self._decay = decay
        self._a = [0.0] * len(
            self.prior
        ) ** 2  # row after row: one long list decays in half the time of many short ones
        self._v = [0.0] * len(self.prior)

    @property
    def solves_next(self) -> bool:
        """Whether the system is solved after the next sample."""
        return self.samples < EAGER_SAMPLES or (self.samples + 1) % LAZY_PERIOD == 0

    def predict_one(self, x: Sequence[float]) -> float:
        return sum(w * value for w, value in zip(self.weights, x, strict=True))

    def learn_one(self, x: Sequence[float], y: float, weight: float, share: float = 1.0) -> None:
        """Take one sample; the older ones decay by d^share. A request that gives two samples gives each a share of
        1/2."""
        assert math.isfinite(y * weight), "the caller lets no NaN in: it would stay for ever"
        keep = self._decay**share
        a, size = [keep * value for value in self._a], len(x)
        v = [keep * value for value in self._v]
        nonzero = [(k, value) for k, value in enumerate(x) if value]  # often half of the inputs are zero
        for k, left in nonzero:
            row, left = k * size, left * weight
            for j, right in nonzero:
                a[row + j] += left * right
            v[k] += weight * y * x[k]
        self._a, self._v = a, v
        solves, self.samples = self.solves_next, self.samples + 1
        if solves:
            self._solve()

    def dump(self) -> SavedState:
        return {
            "weights": list(self.weights),
            "samples": self.samples,
            "a": self._rows(),
            "v": self._v,
        }

    def load(self, state: SavedFields) -> None:
        """Raises SnapshotError."""
        n = len(self.prior)
        weights, samples = state.numbers("weights", n, low=0.0), state.integer("samples")
        v, a = state.numbers("v", n), state.rows("a", n, low=0.0)
        self.weights, self.samples, self._v = tuple(weights), samples, v
        self._a = [value for row in a for value in row]

    def _rows(self) -> list[list[float]]:
        size = len(self.prior)
        return [self._a[start : start + size] for start in range(0, len(self._a), size)]

    def _solve(self) -> None:
        """SWEEPS rounds of the coordinate descent above."""
        w = list(self.weights)
        columns = zip(self._v, self.prior, self.strength, self._rows(), strict=True)
        equations = [(k, v + r * p, row, row[k], row[k] + r) for k, (v, p, r, row) in enumerate(columns)]
        for _ in range(SWEEPS):
            for k, target, row, diagonal, norm in equations:
                value = (target - (sum(map(mul, row, w)) - diagonal * w[k])) / norm
                w[k] = value if value > 0.0 else 0.0
        self.weights = tuple(w)
