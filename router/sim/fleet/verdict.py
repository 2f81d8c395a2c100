"""Which policy over which order is best, and how surely: a sentence.

Compared is the mean latency, seed by seed, so that both had the same traffic: the geometric mean of the ratios. The
interval is a percentile bootstrap over the seeds, 95 %: few seeds make a coarse one, one seed none.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from statistics import fmean

from router.sim.fleet.result import Row, mean_row, percentile

SAMPLES = 2000


def ratio(mine: Sequence[Row], others: Sequence[Row]) -> tuple[float, float, float]:
    """(mean latency of mine over the others', lower and upper end of the interval). Rows of the same seeds, in turn."""
    logs = [math.log(a.mean_s / b.mean_s) for a, b in zip(mine, others, strict=True)]
    lots = random.Random(len(logs))
    means = sorted(fmean(lots.choices(logs, k=len(logs))) for _ in range(SAMPLES))
    return math.exp(fmean(logs)), math.exp(percentile(means, 0.025)), math.exp(percentile(means, 0.975))


def judge(cells: Sequence[Sequence[Row]]) -> str:
    """The sentence. A cell: the rows of one policy and order, by seed; all of the same traffic and engines."""
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
