"""Many replays: every order on every trace at every capacity, one after another or on several processes."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Generator, MutableSequence, Sequence
from concurrent.futures import ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from multiprocessing import active_children, get_context, parent_process
from statistics import fmean

from engine_patches.orders import ORDERS
from router.errors import SetupError
from router.sim.optimum import Optimum, next_uses
from router.sim.replay import Cache, Replayed, replay
from router.sim.trace import Trace, ignore

OPTIMUM = "opt"
NAMES = (*ORDERS, OPTIMUM)
# How often a run on other processes is looked at.
WATCH_EVERY_S = 0.2

# Called with the part of each run that is done, 0 to 1.
Watch = Callable[[Sequence[float]], None]


@dataclass(frozen=True, slots=True)
class Run:
    """One order with one seed on one trace; `capacity` in blocks."""

    trace: Trace
    capacity: int
    order: str
    seed: int


@dataclass(frozen=True, slots=True)
class Row:
    """What the seeds of one order gave: means, and the range of the hit rate."""

    trace: str
    capacity: int
    order: str
    hit_rate: float
    hit_rate_min: float
    hit_rate_max: float
    us_per_access: float
    fallback_share: float


def measure(run: Run, report: Callable[[float], None] = ignore) -> Replayed:
    """One run from its first request to its last. Raises TraceError."""
    trace, capacity = run.trace, run.capacity
    if run.order != OPTIMUM:
        return replay(Cache(ORDERS[run.order](capacity, seed=run.seed)), trace.open(capacity, report))
    first = trace.open(capacity, lambda part: report(part / 2))
    with next_uses(first, capacity) as uses:
        return replay(Optimum(capacity, uses), trace.open(capacity, lambda part: report((1 + part) / 2)))


def study(
    traces: Sequence[Trace],
    capacities: Sequence[int],
    orders: Sequence[str],
    seeds: Sequence[int],
    *,
    jobs: int = 1,
    watch: Watch = lambda _parts: None,
) -> Generator[Row, None, None]:
    """A row for each trace, capacity and order, in this order, each as soon as it and those before are done.

    An order without chance runs once. Raises TraceError, and SetupError if a process dies.
    """
    cells = [
        [Run(trace, capacity, order, seed) for seed in (seeds if draws_lots(order) else seeds[:1])]
        for trace in traces
        for capacity in capacities
        for order in orders
    ]
    runs = [run for cell in cells for run in cell]
    results = measure_here(runs, watch) if jobs == 1 else measure_apart(runs, watch, min(jobs, len(runs)))
    with closing(results):
        for cell in cells:
            yield summarize(cell[0], list(islice(results, len(cell))))


def draws_lots(order: str) -> bool:
    return order != OPTIMUM and ORDERS[order].randomized


def summarize(run: Run, results: Sequence[Replayed]) -> Row:
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


def measure_here(runs: Sequence[Run], watch: Watch) -> Generator[Replayed, None, None]:
    parts = [0.0] * len(runs)
    for index, run in enumerate(runs):

        def report(part: float, index: int = index) -> None:
            parts[index] = part
            watch(parts)

        yield measure(run, report)
        parts[index] = 1.0


def measure_apart(runs: Sequence[Run], watch: Watch, jobs: int) -> Generator[Replayed, None, None]:
    """On `jobs` processes of its own, which end with it, however it ends."""
    context = get_context("spawn")
    parts = context.RawArray("d", len(runs))
    pool = ProcessPoolExecutor(jobs, context, _begin, (parts,))
    try:
        for future in [pool.submit(_measure, index, run) for index, run in enumerate(runs)]:
            while not wait([future], WATCH_EVERY_S).done:
                watch(list(parts))
            watch(list(parts))
            yield future.result()
    except BrokenProcessPool:
        raise SetupError("a process of the benchmark died (out of memory?); try fewer --jobs") from None
    except BaseException:
        for child in active_children():
            child.terminate()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


_parts: MutableSequence[float] = []  # in a process of the pool: shared with the one that waits


def _begin(parts: MutableSequence[float]) -> None:
    global _parts
    _parts = parts
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is answered by the process that waits
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = parent_process()
    assert parent is not None, "runs in the processes of the pool"
    parent.join()
    os._exit(1)


def _measure(index: int, run: Run) -> Replayed:
    def report(part: float) -> None:
        _parts[index] = part

    result = measure(run, report)
    report(1.0)
    return result
