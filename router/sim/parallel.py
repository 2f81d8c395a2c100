"""Many runs of one kind, one after another or on several processes; their results in order, the same either way."""

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

WATCH_EVERY_S = 0.2  # how often a run on other processes is looked at

A = TypeVar("A")
B = TypeVar("B")

Report = Callable[[float], None]  # called with the part of a run that is done, 0 to 1
Watch = Callable[[Sequence[float]], None]  # called with the parts of all


def measure_all(
    measure: Callable[[A, Report], B], runs: Sequence[A], watch: Watch, jobs: int = 1
) -> Generator[B, None, None]:
    """`measure` of each run, a function of a module. Raises what it raises, and SetupError if a process dies."""
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
    """On `jobs` processes of its own, which end with it, however it ends."""
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


def _measure(measure: Callable[[A, Report], B], index: int, run: A) -> B:
    def report(part: float) -> None:
        _parts[index] = part

    result = measure(run, report)
    report(1.0)
    return result
