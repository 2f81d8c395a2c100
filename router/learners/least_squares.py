"""Non-negative least squares, learned online with forgetting.

    minimise  sum_t d^(T-t) wt_t (y_t - w.x_t)^2  +  sum_k r_k (w_k - p_k)^2   over  w >= 0

by cyclic coordinate descent on the normal equations (A, v), warm from the last solution:

    w_k <- max(0, (v_k + r_k p_k - sum_{j != k} A_kj w_j) / (A_kk + r_k))

A, v: decayed sums of wt x x' and wt y x; p, r: prior and its strength, kept by the owner; d: decay.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from operator import mul

from router.saved_state import SavedFields, SavedState

SWEEPS = 12
EAGER_SAMPLES = 50  # solved after each of these, later after every LAZY_PERIOD-th
LAZY_PERIOD = 8


class NonNegativeLeastSquares:
    """About 10 us a sample and 50 us a solution at six coefficients (CPython, one core)."""

    def __init__(self, prior: Sequence[float], strength: Sequence[float], decay: float = 0.995) -> None:
        self.prior = list(prior)
        self.strength = list(strength)
        """p and r above; the owner may move them, which takes effect at the next solution."""
        self.weights = tuple(prior)
        self.samples = 0
        self._decay = decay
        self._a = [[0.0] * len(self.prior) for _ in self.prior]
        self._v = [0.0] * len(self.prior)

    def predict_one(self, x: Sequence[float]) -> float:
        return sum(w * value for w, value in zip(self.weights, x, strict=True))

    def learn_one(self, x: Sequence[float], y: float, weight: float, share: float = 1.0) -> None:
        """One sample; it ages the older ones by d^share (a request that gives two samples gives two halves)."""
        assert math.isfinite(y * weight), "the caller lets no NaN in: it would stay for ever"
        keep = self._decay**share
        a = [[keep * value for value in row] for row in self._a]
        v = [keep * value for value in self._v]
        told = [(k, value) for k, value in enumerate(x) if value]  # a sample is of one line: the half of it is zeros
        for k, left in told:
            row, left = a[k], left * weight
            for j, right in told:
                row[j] += left * right
            v[k] += weight * y * x[k]
        self._a, self._v = a, v
        self.samples += 1
        if self.samples <= EAGER_SAMPLES or self.samples % LAZY_PERIOD == 0:
            self._solve()

    def dump(self) -> SavedState:
        return {
            "weights": list(self.weights),
            "samples": self.samples,
            "a": [list(row) for row in self._a],
            "v": self._v,
        }

    def load(self, state: SavedFields) -> None:
        """Raises SnapshotError."""
        n = len(self.prior)
        weights, samples = state.numbers("weights", n, low=0.0), state.integer("samples")
        v, a = state.numbers("v", n), state.rows("a", n, low=0.0)
        self.weights, self.samples, self._a, self._v = tuple(weights), samples, a, v

    def _solve(self) -> None:
        w = list(self.weights)
        known = zip(self._v, self.prior, self.strength, self._a, strict=True)
        lines = [(k, v + r * p, row, row[k], row[k] + r) for k, (v, p, r, row) in enumerate(known)]
        for _ in range(SWEEPS):
            for k, told, row, own, norm in lines:
                value = (told - (sum(map(mul, row, w)) - own * w[k])) / norm
                w[k] = value if value > 0.0 else 0.0
        self.weights = tuple(w)
