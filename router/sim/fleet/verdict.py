"""The verdict: a sentence that says which policy over which order is best, and how surely.

Two of them are compared by their mean latencies seed by seed, so that both had the same traffic; the geometric mean of
these ratios is told. Its interval is a percentile bootstrap over the seeds, 95 %: with few seeds it is coarse, with one
seed there is none.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from statistics import fmean

from router.sim.fleet.result import Row, mean_row, percentile

SAMPLES = 2000  # Of the bootstrap.


def ratio(mine: Sequence[Row], others: Sequence[Row]) -> tuple[float, float, float]:
    """Return the mean latency of `mine` over that of `others`, and the lower and upper end of its interval.

    The rows of both must be of the same seeds in the same order.
    """
    logs = [math.log(a.mean_s / b.mean_s) for a, b in zip(mine, others, strict=True)]
    lots = random.Random(len(logs))
    means = sorted(fmean(lots.choices(logs, k=len(logs))) for _ in range(SAMPLES))
    return math.exp(fmean(logs)), math.exp(percentile(means, 0.025)), math.exp(percentile(means, 0.975))


def judge(cells: Sequence[Sequence[Row]]) -> str:
    """Return the sentence. Each cell holds the rows of one policy and order, a row a seed; all cells are of the same
    traffic, engines and seeds."""
    best = min(cells, key=lambda cell: mean_row(cell).mean_s)
    row = mean_row(best)
    said = f"{row.workload}, {row.rate:g}/s, {row.engines} engines: best mean {row.mean_s:.3f} s, {_name(best)}"
    others = [cell for cell in cells if cell is not best]
    if not others:
        return said
    return said + "; its part of " + ", ".join(_compare(best, cell) for cell in others)


def _compare(best: Sequence[Row], other: Sequence[Row]) -> str:
    middle, low, high = ratio(best, other)
    if len(best) == 1:
        return f"{_name(other)}: {middle:.3f} (one seed)"
    doubt = "" if high < 1 else ", not shown to be better"
    return f"{_name(other)}: {middle:.3f} [{low:.3f}-{high:.3f}]{doubt}"


def _name(cell: Sequence[Row]) -> str:
    return f"{cell[0].policy} + {cell[0].order}"
