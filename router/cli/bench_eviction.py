"""`leafcutter bench eviction`: the hit rates and costs of the eviction orders on traces and workloads.

The orders are the very code that runs inside the engines. Only their own CPU time is measured: reading the trace and
the book-keeping of this program do not count.
"""

from __future__ import annotations

import argparse
from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from router.cli.flags import add_agents_flags, agents_flags, choice, integer, names, seeds, words
from router.cli.progress import show
from router.errors import ConfigError
from router.sim.agents import AgentTrace, holds_conversations
from router.sim.eviction.report import BASELINE, Table, draw, to_json
from router.sim.eviction.sweep import OPTIMUM, ORDER_CHOICES, Row, sweep
from router.sim.eviction.workload import WORKLOADS, Workload
from router.sim.figure import plotter
from router.sim.hints import HINTS
from router.sim.parallel import Watch
from router.sim.trace import Trace, TraceFile

MOST_BLOCKS = 100_000_000


@dataclass(frozen=True, slots=True)
class Plan:
    """What one call of the command is going to do."""

    traces: list[Trace]
    capacities: list[int]
    orders: list[str]
    seeds: list[int]
    hints: str
    json: bool
    plot: str | None
    jobs: int


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Add the options of `bench eviction` to its parser."""
    workloads = ", ".join(WORKLOADS)
    files = "files of one request a line, its block ids, or Mooncake JSONL, or agents' conversations; gzip too"
    orders = f"of {', '.join(ORDER_CHOICES)} ({OPTIMUM}: furthest next use; default: all)"
    for flag, metavar, help_text in (
        ("--trace", "FILE|NAME[,...]", f"{files}; or workloads: {workloads}"),
        ("--workload", "NAME[,...]", "workloads by name"),
        ("--capacity", "K[,...]", "blocks in the cache"),
        ("--orders", "A[,...]", orders),
    ):
        command.add_argument(flag, metavar=metavar, action="append", default=[], help=help_text)
    add = command.add_argument
    add("--seeds", metavar="N|A,B,...", default="1", help="N: seeds 0 to N-1; a list: those; default: 1")
    add("--workload-seed", metavar="SEED", default="0", help="makes another workload of the same kind; default: 0")
    add("--requests", metavar="N", help="stop after N requests; also makes a workload longer")
    add_agents_flags(command)
    add("--jobs", metavar="N", default="1", help="processes; default: 1, which disturbs the timing least")
    add("--json", action="store_true", help="one JSON object a line")
    add("--plot", metavar="FILE", help="draw hit rate over capacity into a .png, .svg or .pdf file")


def plan_of(arguments: argparse.Namespace) -> Plan:
    """Return the plan that the parsed flags ask for. Raises ConfigError."""
    limit = None if arguments.requests is None else integer("requests", arguments.requests)
    seed = integer("workload-seed", arguments.workload_seed, low=0)
    return Plan(
        traces=_traces(arguments, limit, seed),
        capacities=[integer("capacity", word, high=MOST_BLOCKS) for word in words("capacity", arguments.capacity)],
        orders=names("orders", arguments.orders or [",".join(ORDER_CHOICES)], ORDER_CHOICES),
        seeds=seeds(arguments.seeds),
        hints=choice("hints", arguments.hints, HINTS),
        json=arguments.json,
        plot=arguments.plot,
        jobs=integer("jobs", arguments.jobs),
    )


def _traces(arguments: argparse.Namespace, limit: int | None, seed: int) -> list[Trace]:
    traces, workloads = arguments.trace, arguments.workload
    known = ", ".join(WORKLOADS)
    found: list[Trace] = []
    # A file is read anew for every run, so it must be a real file and no pipe. Its name may hold a comma.
    for word in [word for text in traces for word in ([text] if Path(text).is_file() else words("trace", [text]))]:
        if word in WORKLOADS:
            found.append(Workload(word, limit, seed))
        elif Path(word).is_file():
            found += _trace_file(arguments, word, limit, seed)
        else:
            raise ConfigError("trace", word, f"a file, or a workload: {known}")
    for word in words("workload", workloads) if workloads else []:
        if word not in WORKLOADS:
            raise ConfigError("workload", word, f"one of {known}")
        found.append(Workload(word, limit, seed))
    if not found:
        raise ConfigError("trace", "", f"a file, or a workload: {known}")
    return list(dict.fromkeys(found))


def _trace_file(arguments: argparse.Namespace, path: str, limit: int | None, seed: int) -> list[Trace]:
    """Return the traces in a file. Of agents' conversations there is one for each number of users."""
    if not holds_conversations(path):
        return [TraceFile(path, limit)]
    users, think_cap_s = agents_flags(arguments)
    return [AgentTrace(path, each, think_cap_s, limit, seed) for each in users]


def run(arguments: argparse.Namespace) -> int:
    """Run the command and return its exit status. Raises ConfigError, TraceError and SetupError."""
    plan = plan_of(arguments)
    plot = plotter(plan.plot, draw) if plan.plot else None
    shown = show(lambda watch: lines_of(plan, watch))
    if plot:
        plot(shown)
    return 0


def lines_of(plan: Plan, watch: Watch) -> Generator[tuple[str, Row], None, None]:
    """Give the lines that are printed, each with the row that it shows."""
    # The table compares each order with these two, so they run even if nobody asked for them.
    orders = plan.orders if plan.json else list(dict.fromkeys([*plan.orders, BASELINE, OPTIMUM]))
    rows = sweep(plan.traces, plan.capacities, orders, plan.seeds, hints=plan.hints, jobs=plan.jobs, watch=watch)
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
