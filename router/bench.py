"""`leafcutter bench eviction`: hit rates and costs of the eviction orders on a trace or a workload.

The order's own CPU time is measured, while the very code that runs inside the engines decides; reading the trace and
this program's own book-keeping do not count.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
import time
from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TextIO

from router.errors import ConfigError
from router.sim.report import BASELINE, Table, plotter, to_json
from router.sim.study import NAMES, OPTIMUM, Row, Watch, study
from router.sim.trace import Trace, TraceFile
from router.sim.workload import WORKLOADS, Workload

MOST_BLOCKS = 100_000_000


@dataclass(frozen=True, slots=True)
class Plan:
    """What one call of the command is to do."""

    traces: list[Trace]
    capacities: list[int]
    orders: list[str]
    seeds: list[int]
    json: bool
    plot: str | None
    jobs: int


def add_arguments(command: argparse.ArgumentParser) -> None:
    """The options of `bench eviction`."""
    names = ", ".join(WORKLOADS)
    files = "files of one request a line, its block ids, or Mooncake JSONL; gzip too"
    orders = f"of {', '.join(NAMES)} ({OPTIMUM}: furthest next use; default: all)"
    for flag, metavar, words in (
        ("--trace", "FILE|NAME[,...]", f"{files}; or workloads: {names}"),
        ("--workload", "NAME[,...]", "workloads by name"),
        ("--capacity", "K[,...]", "blocks in the cache"),
        ("--orders", "A[,...]", orders),
    ):
        command.add_argument(flag, metavar=metavar, action="append", default=[], help=words)
    add = command.add_argument
    add("--seeds", metavar="N|A,B,...", default="1", help="N: seeds 0 to N-1; a list: those; default: 1")
    add("--workload-seed", metavar="SEED", default="0", help="makes another workload of the same kind; default: 0")
    add("--requests", metavar="N", help="stop after N requests; also makes a workload longer")
    add("--jobs", metavar="N", default="1", help="processes; default: 1, which disturbs the timing least")
    add("--json", action="store_true", help="one JSON object a line")
    add("--plot", metavar="FILE", help="draw hit rate over capacity into a .png, .svg or .pdf file")


def plan_of(arguments: argparse.Namespace) -> Plan:
    """The parsed flags, checked. Raises ConfigError."""
    limit = None if arguments.requests is None else _integer("requests", arguments.requests)
    seed = _integer("workload-seed", arguments.workload_seed, low=0)
    return Plan(
        traces=_traces(arguments.trace, arguments.workload, limit, seed),
        capacities=[_integer("capacity", word, high=MOST_BLOCKS) for word in _words("capacity", arguments.capacity)],
        orders=[_order(word) for word in _words("orders", arguments.orders or [",".join(NAMES)])],
        seeds=_seeds(arguments.seeds),
        json=arguments.json,
        plot=arguments.plot,
        jobs=_integer("jobs", arguments.jobs),
    )


def _words(key: str, texts: Sequence[str]) -> list[str]:
    """The items of a flag that may be given several times, each a list; every item once."""
    words = list(dict.fromkeys(word.strip() for text in texts for word in text.split(",") if word.strip()))
    if not words:
        raise ConfigError(key, ",".join(texts), f"at least one value (--{key})")
    return words


def _integer(key: str, text: str, *, low: int = 1, high: int | None = None) -> int:
    value = int(text) if text.strip().isascii() and text.strip().isdigit() and len(text) < 20 else low - 1
    if value < low or (high is not None and value > high):
        upper = "" if high is None else f" and at most {high}"
        raise ConfigError(key, text, f"an integer of at least {low}{upper}")
    return value


def _seeds(text: str) -> list[int]:
    if "," not in text:
        return list(range(_integer("seeds", text)))
    return [_integer("seeds", word, low=0) for word in _words("seeds", [text])]


def _order(word: str) -> str:
    order = word.replace("-", "_")
    if order not in NAMES:
        raise ConfigError("orders", word, f"some of {', '.join(NAMES)}")
    return order


def _traces(traces: Sequence[str], workloads: Sequence[str], limit: int | None, seed: int) -> list[Trace]:
    known = ", ".join(WORKLOADS)
    found: list[Trace] = []
    # A file is read anew for every run, so it must be a real one; its name may hold a comma.
    for word in [word for text in traces for word in ([text] if Path(text).is_file() else _words("trace", [text]))]:
        if word in WORKLOADS:
            found.append(Workload(word, limit, seed))
        elif Path(word).is_file():
            found.append(TraceFile(word, limit))
        else:
            raise ConfigError("trace", word, f"a file, or a workload: {known}")
    for word in _words("workload", workloads) if workloads else []:
        if word not in WORKLOADS:
            raise ConfigError("workload", word, f"one of {known}")
        found.append(Workload(word, limit, seed))
    if not found:
        raise ConfigError("trace", "", f"a file, or a workload: {known}")
    return list(dict.fromkeys(found))


def run(arguments: argparse.Namespace) -> int:
    """The command. Raises ConfigError, TraceError and SetupError."""
    plan = plan_of(arguments)
    draw = plotter(plan.plot) if plan.plot else None
    progress = Progress(sys.stderr)
    shown: list[Row] = []
    try:
        with closing(lines_of(plan, progress.show)) as lines:
            for line, row in lines:
                progress.clear()
                print(line, flush=True)
                shown.append(row)
    except BrokenPipeError:  # the reader, `head` perhaps, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    finally:
        progress.clear()
    if draw:
        draw(shown)
    return 0


def lines_of(plan: Plan, watch: Watch) -> Generator[tuple[str, Row], None, None]:
    """What is printed, line after line, and the row that it shows."""
    # A table says how each order compares with these two, asked for or not.
    orders = plan.orders if plan.json else list(dict.fromkeys([*plan.orders, BASELINE, OPTIMUM]))
    rows = study(plan.traces, plan.capacities, orders, plan.seeds, jobs=plan.jobs, watch=watch)
    with closing(rows):
        if plan.json:
            for row in rows:
                yield to_json(row), row
            return
        table = Table([trace.label for trace in plan.traces])
        head = table.head() + "\n"
        while beside := {row.order: row for row in islice(rows, len(orders))}:
            for order in plan.orders:
                yield head + table.line(beside[order], beside), beside[order]
                head = ""


class Progress:
    """A line that says how far it is, on a terminal only, once a run takes longer than a moment."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._start = time.monotonic()
        self._next = self._start + 1.0 if stream.isatty() else math.inf
        self._drawn = False

    def show(self, parts: Sequence[float]) -> None:
        """`parts`: of each run, the part that is done."""
        now = time.monotonic()
        if now < self._next:
            return
        self._next = now + 0.2
        done = sum(parts)
        left_s = (now - self._start) * (len(parts) - done) / done if done else math.inf
        left = f", {left_s:.0f} s left" if left_s < math.inf else ""
        bar = ("#" * int(24 * done / len(parts))).ljust(24, ".")
        self._stream.write(f"\r\033[K[{bar}] {int(done)} of {len(parts)} runs{left}")
        self._stream.flush()
        self._drawn = True

    def clear(self) -> None:
        if self._drawn:
            self._stream.write("\r\033[K")
            self._stream.flush()
            self._drawn = False
