"""Many runs of one kind, one after another or on several processes: the results are the same, and in the same order."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Generator, MutableSequence, Sequence
from concurrent.futures import ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import active_children, get_context, parent_process
from typing import TypeVar

from router.errors import SetupError

WATCH_EVERY_S = 0.2  # How often the progress of the other processes is looked at.

A = TypeVar("A")
B = TypeVar("B")

Report = Callable[[float], None]
"""Called by a run with the part of it that is done, 0 to 1."""
Watch = Callable[[Sequence[float]], None]
"""Called with the parts of all runs that are done, each from 0 to 1, in the order of the runs."""


def measure_all(
    measure: Callable[[A, Report], B], runs: Sequence[A], watch: Watch, jobs: int = 1
) -> Generator[B, None, None]:
    """Give the result of `measure` for each run, in their order, on `jobs` processes (1: on this one).

    For several processes `measure` must be a function at the top of a module, so that it can be found there. Raises
    what `measure` raises, and SetupError if a process dies.
    """
    return _here(measure, runs, watch) if jobs == 1 else _apart(measure, runs, watch, min(jobs, len(runs)))


def _here(measure: Callable[[A, Report], B], runs: Sequence[A], watch: Watch) -> Generator[B, None, None]:
    parts = [0.0] * len(runs)
    for index, run in enumerate(runs):

        def report(part: float, index: int = index) -> None:
            parts[index] = part
            watch(parts)

        yield measure(run, report)
        parts[index] = 1.0


def _apart(measure: Callable[[A, Report], B], runs: Sequence[A], watch: Watch, jobs: int) -> Generator[B, None, None]:
    """Measure on `jobs` new processes, which end with this generator, however it ends."""
    context = get_context("spawn")
    parts = context.RawArray("d", len(runs))
    pool = ProcessPoolExecutor(jobs, context, _begin, (parts,))
    try:
        for future in [pool.submit(_measure, measure, index, run) for index, run in enumerate(runs)]:
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


_parts: MutableSequence[float] = []  # In a process of the pool: memory shared with the process that waits for it.


def _begin(parts: MutableSequence[float]) -> None:
    global _parts
    _parts = parts
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # The process that waits answers Ctrl-C.
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """End this process when its parent has ended, in whatever way."""
    parent = parent_process()
    assert parent is not None, "runs in the processes of the pool"
    parent.join()
    os._exit(1)


def _measure(measure: Callable[[A, Report], B], index: int, run: A) -> B:
    def report(part: float) -> None:
        _parts[index] = part

    result = measure(run, report)
    report(1.0)
    return result
