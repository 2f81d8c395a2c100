"""The sweep: every order on every trace at every capacity, one after another or on several processes."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from statistics import fmean

from engine_patches.orders import ORDERS
from router.sim.eviction.optimum import Optimum, next_uses
from router.sim.eviction.replay import Cache, ReplayResult, replay
from router.sim.hints import OFF, Hints
from router.sim.parallel import Watch, measure_all
from router.sim.trace import Trace, ignore

OPTIMUM = "opt"
ORDER_CHOICES = (*ORDERS, OPTIMUM)


@dataclass(frozen=True, slots=True)
class Run:
    """The replay of one trace over one order with one seed, in a cache of `capacity` blocks."""

    trace: Trace
    capacity: int
    order: str
    seed: int
    hints: str = OFF
    """What the order is told of sessions, one of `hints.HINTS`."""


@dataclass(frozen=True, slots=True)
class Row:
    """What the seeds of one order gave: the means, and the range of the hit rate."""

    trace: str
    capacity: int
    order: str
    hit_rate: float
    hit_rate_min: float
    hit_rate_max: float
    us_per_access: float
    fallback_share: float


def measure(run: Run, report: Callable[[float], None] = ignore) -> ReplayResult:
    """Replay one run from its first request to its last. Raises TraceError."""
    trace, capacity = run.trace, run.capacity
    if run.order != OPTIMUM:
        cache = Cache(ORDERS[run.order](capacity, seed=run.seed), Hints(run.hints, run.seed))
        return replay(cache, trace.open(capacity, report))
    first = trace.open(capacity, lambda part: report(part / 2))
    with next_uses(first, capacity) as uses:
        return replay(Optimum(capacity, uses), trace.open(capacity, lambda part: report((1 + part) / 2)))


def sweep(
    traces: Sequence[Trace],
    capacities: Sequence[int],
    orders: Sequence[str],
    seeds: Sequence[int],
    *,
    hints: str = OFF,
    jobs: int = 1,
    watch: Watch = lambda _parts: None,
) -> Generator[Row, None, None]:
    """Give a row for each trace, capacity and order, in this nesting, each as soon as it and those before it are done.

    An order that draws no lots runs with the first seed only. Raises TraceError, and SetupError if a process dies.
    """
    cells = [
        [Run(trace, capacity, order, seed, hints) for seed in (seeds if is_randomized(order) else seeds[:1])]
        for trace in traces
        for capacity in capacities
        for order in orders
    ]
    runs = [run for cell in cells for run in cell]
    with closing(measure_all(measure, runs, watch, jobs)) as results:
        for cell in cells:
            yield summarize(cell[0], list(islice(results, len(cell))))


def is_randomized(order: str) -> bool:
    """Whether the seed matters to the order of this name."""
    return order != OPTIMUM and ORDERS[order].randomized


def summarize(run: Run, results: Sequence[ReplayResult]) -> Row:
    """Return the row of runs that differ only in the seed; `run` is any of them."""
    rates = [result.hit_rate for result in results]
    return Row(
        run.trace.label,
        run.capacity,
        run.order,
        fmean(rates),
        min(rates),
        max(rates),
        fmean(result.us_per_access for result in results),
        fmean(result.fallback_share for result in results),
    )
