"""`leafcutter simulate`: what a fleet would do under another policy, eviction order or load, or with other engines.

The simulation plays discrete events on a clock of its own. The router, its policies and the eviction orders are the
very code that runs live; the engines are a model (`sim.fleet.engine`, `sim.fleet.hardware`).
"""

from __future__ import annotations

import argparse
from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from router.cli.flags import add_agents_flags, agents_flags, choice, integer, names, number, seeds, words
from router.cli.progress import show
from router.config import Config
from router.errors import ConfigError
from router.options import check, options_of
from router.policies.table import TABLE
from router.sim.agents import holds_conversations
from router.sim.figure import plotter
from router.sim.fleet.agents import DURATION_S, Agents
from router.sim.fleet.chart import draw
from router.sim.fleet.hardware import HARDWARE
from router.sim.fleet.result import Row, Table, mean_row, measure, to_json
from router.sim.fleet.scenario import ORDER_NAMES, FleetSpec, Run, Slowdown
from router.sim.fleet.traffic import TRACE_BLOCK, WORKLOADS, Replay, Traffic, Workload, replay
from router.sim.fleet.verdict import judge
from router.sim.hints import HINTS
from router.sim.parallel import Watch, measure_all
from router.sim.trace import TraceFile

MOST_ENGINES = 256
BLOCK = 128
AGENTS_BLOCK = 256
REQUESTS_AN_ENGINE = {False: 1024, True: 2048}  # The key says whether sessions have ids, as those of many turns do.
ORDER = "rlt_gix"


@dataclass(frozen=True, slots=True)
class Plan:
    """What one call of the command is going to do."""

    loads: list[tuple[Traffic, FleetSpec]]
    """Every traffic with the fleet that it meets."""
    policies: list[str]
    orders: list[str]
    seeds: list[int]
    options: dict[str, Any]
    hints: str
    json: bool
    plot: str | None
    jobs: int


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Add the options of `simulate` to its parser."""
    add = command.add_argument
    many: dict[str, Any] = {"action": "append", "default": []}
    add("--workload", metavar="NAME[,...]", help=", ".join(WORKLOADS), **many)
    add("--rate", metavar="R[,...]", help="sessions a second; of a trace: its times are scaled to it", **many)
    add(
        "--requests", metavar="N", help="about so many; of a trace: its first N; default: 1024 an engine, 2048 of chats"
    )
    add(
        "--trace",
        metavar="FILE",
        help="Mooncake JSONL, or agents' conversations, gzip too, in place of a workload",
        **many,
    )
    add("--time-scale", metavar="X", default="1", help="the times of a trace times X: 0.5 doubles the load; default: 1")
    add("--skip", metavar="N", default="0", help="leave out the first N requests of a trace")
    add("--spread", action="store_true", help="requests of one time in a trace arrive evenly until the next time")
    add("--engines", metavar="N[,...]", default="4", help=f"1 to {MOST_ENGINES}; default: 4")
    add("--hardware", metavar="H[,...]", default="l40-8b", help=f"{', '.join(HARDWARE)}; several: in turn")
    add("--policies", metavar="A[,...]", help=f"of {', '.join(TABLE)}; default: all", **many)
    add("--orders", metavar="A[,...]", help=f"of {', '.join(ORDER_NAMES)}; a+b: in turn; default: {ORDER}", **many)
    add("--seeds", metavar="N|A,B,...", default="3", help="N: seeds 0 to N-1; a list: those; default: 3")
    add("--block-size", metavar="N", help=f"tokens in a block; default: {BLOCK}, or {TRACE_BLOCK} with a trace")
    add("--cache-tokens", metavar="N", help="cache of each engine; default: the hardware's")
    add("--told", metavar="X", default="1", help="the cache size engines tell over the true one; 0: none; default: 1")
    add("--unstreamed", metavar="PART", default="0", help="of the requests, 0 to 1, without a visible first token")
    add("--slo-ttft-ms", metavar="MS", help="a bound that every request sets on its first token")
    add("--slo-tpot-ms", metavar="MS", help="the same on each later token; --set lbgr_objective=slo heeds them")
    add("--slow", metavar="ENGINE:FACTOR", help="an engine, from 0, that many times slower", **many)
    add("--degrade", metavar="ENGINE:FACTOR:FROM:TO", help="the same between two seconds", **many)
    add("--fail", metavar="ENGINE:AT", help="an engine dies at a second", **many)
    add("--join", metavar="ENGINE:AT", help="an engine starts then; without --fail before: for the first time", **many)
    add("--set", metavar="NAME=VALUE", help="an option of the gateway, such as lbgr_duplication_weight=3", **many)
    add_agents_flags(command)
    add("--duration", metavar="S", help=f"how long users of a trace of agents ask; default: {DURATION_S:g}")
    add("--jobs", metavar="N", default="1", help="processes; default: 1")
    add("--json", action="store_true", help="one JSON object a line, for each seed")
    add("--plot", metavar="FILE", help="draw latency over rate into a .png, .svg or .pdf file")


def plan_of(arguments: argparse.Namespace) -> Plan:
    """Return the plan that the parsed flags ask for. Raises ConfigError and TraceError."""
    block = None if arguments.block_size is None else integer("block-size", arguments.block_size)
    counts = [integer("engines", word, high=MOST_ENGINES) for word in words("engines", [arguments.engines])]
    loads: list[tuple[Traffic, FleetSpec]] = []
    played = agents(arguments)
    for engines in counts:
        loads += [(traffic, fleet_of(arguments, engines, block or AGENTS_BLOCK)) for traffic in played]
        loads += [(traffic, fleet_of(arguments, engines, block or BLOCK)) for traffic in workloads(arguments, engines)]
        for trace in traces(arguments, block):
            usual = TRACE_BLOCK if trace.id_tokens is None else BLOCK
            loads.append((trace, fleet_of(arguments, engines, block or usual)))
    if not loads:
        raise ConfigError("workload", "", f"one of {', '.join(WORKLOADS)}, or a --trace")
    return Plan(
        loads=loads,
        policies=names("policies", arguments.policies or [",".join(TABLE)], tuple(TABLE)),
        orders=orders_of(arguments.orders or [ORDER]),
        seeds=seeds(arguments.seeds),
        options=options_set(arguments.set),
        hints=choice("hints", arguments.hints, HINTS),
        json=arguments.json,
        plot=arguments.plot,
        jobs=integer("jobs", arguments.jobs),
    )


def workloads(arguments: argparse.Namespace, engines: int) -> list[Traffic]:
    """Return the workloads that are asked for, at every rate, long enough for so many engines. Raises ConfigError."""
    if not arguments.workload:
        return []
    rates = [number("rate", word) for word in words("rate", arguments.rate)]
    found: list[Traffic] = []
    for name in names("workload", arguments.workload, tuple(WORKLOADS)):
        usual = REQUESTS_AN_ENGINE[WORKLOADS[name].sends_session_id] * engines
        requests = usual if arguments.requests is None else integer("requests", arguments.requests)
        found += [Workload(name, rate, requests) for rate in rates]
    return found


def traces(arguments: argparse.Namespace, block: int | None) -> list[Replay]:
    """Return the traces that are asked for at every rate. Raises ConfigError and TraceError.

    `block` is the block size that was asked for, in tokens.
    """
    found: list[Replay] = []
    for path in trace_files(arguments, agents=False):
        skip = integer("skip", arguments.skip, low=0)
        requests = None if arguments.requests is None else integer("requests", arguments.requests)
        scale = number("time-scale", arguments.time_scale)
        rates = [number("rate", word) for word in words("rate", arguments.rate)] if arguments.rate else [None]
        for rate in rates:
            found.append(
                replay(TraceFile(path), skip=skip, requests=requests, rate=rate, scale=scale, spread=arguments.spread)
            )
            if block is not None and found[-1].id_tokens is None and TRACE_BLOCK % block:
                raise ConfigError("block-size", block, f"a divisor of {TRACE_BLOCK}, the tokens of a trace's block")
    return found


def trace_files(arguments: argparse.Namespace, *, agents: bool) -> list[str]:
    """Return the files of traces that are asked for, of agents' conversations or of requests. Raises ConfigError."""
    for path in arguments.trace:
        if not Path(path).is_file():  # It is read anew for every run, so a pipe will not do.
            raise ConfigError("trace", path, "a file")
    return [path for path in dict.fromkeys(arguments.trace) if holds_conversations(path) == agents]


def agents(arguments: argparse.Namespace) -> list[Traffic]:
    """Return the traces of agents that are asked for, with every number of users. Raises ConfigError and TraceError."""
    duration_s = DURATION_S if arguments.duration is None else number("duration", arguments.duration)
    users, think_cap_s = agents_flags(arguments)
    return [
        Agents(path, each, think_cap_s, duration_s) for path in trace_files(arguments, agents=True) for each in users
    ]


def fleet_of(arguments: argparse.Namespace, engines: int, block: int) -> FleetSpec:
    """Return the fleet of so many engines with blocks of `block` tokens. Raises ConfigError."""
    hardware = [word.strip() for word in arguments.hardware.split(",")]  # A name may be given twice.
    for name in hardware:
        if name not in HARDWARE:
            raise ConfigError("hardware", name, f"some of {', '.join(HARDWARE)}")
    size = None if arguments.cache_tokens is None else integer("cache-tokens", arguments.cache_tokens, low=block)
    return FleetSpec(
        engines,
        tuple(hardware),
        block,
        cache_tokens=size,
        reported_cache_ratio=number("told", arguments.told, low=0),
        unstreamed=number("unstreamed", arguments.unstreamed, low=0, high=1),
        slo_ttft_s=bound_s("slo-ttft-ms", arguments.slo_ttft_ms),
        slo_tpot_s=bound_s("slo-tpot-ms", arguments.slo_tpot_ms),
        slow=tuple((int(e), f) for e, f in events("slow", arguments.slow, engines, "FACTOR")),
        degrade=tuple(
            Slowdown(int(e), f, *times)
            for e, f, *times in events("degrade", arguments.degrade, engines, "FACTOR:FROM:TO")
        ),
        fail=tuple((int(e), at) for e, at in events("fail", arguments.fail, engines, "AT")),
        join=tuple((int(e), at) for e, at in events("join", arguments.join, engines, "AT")),
    )


def bound_s(key: str, text: str | None) -> float | None:
    """Return a bound on latency in seconds, which is given in milliseconds."""
    return None if text is None else number(key, text, low=1e-3) / 1000


def events(key: str, texts: Sequence[str], engines: int, form: str) -> list[list[float]]:
    """Return what happens to engines: for each event the engine's index, and the numbers that `form` names.

    A FACTOR must be above 0, other numbers may be 0. Raises ConfigError.
    """
    found = []
    for word in words(key, texts) if texts else []:
        parts = word.split(":")
        kinds = form.split(":")
        if len(parts) != 1 + len(kinds):
            raise ConfigError(key, word, f"ENGINE:{form}")
        engine = integer(key, parts[0], low=0, high=engines - 1)
        numbers = [
            number(key, part, low=1e-3 if kind == "FACTOR" else 0) for part, kind in zip(parts[1:], kinds, strict=True)
        ]
        found.append([engine, *numbers])
    return found


def orders_of(texts: Sequence[str]) -> list[str]:
    """Return orders, each a name or several names joined by +. Raises ConfigError."""
    found = []
    for word in words("orders", texts):
        found.append("+".join(name for part in word.split("+") for name in names("orders", [part], ORDER_NAMES)))
    return found


def options_set(texts: Sequence[str]) -> dict[str, Any]:
    """Return options of the gateway by name, except those that the command has flags of its own for."""
    known = {option.name: option for option in options_of(Config, study=True) if option.name not in ("policy", "seed")}
    found = {}
    for text in texts:
        key, _, value = text.partition("=")
        name = key.strip().replace("-", "_")
        if name not in known:
            raise ConfigError("set", text, "NAME=VALUE, an option of the gateway (leafcutter serve --help)")
        found[name] = check(known[name], value.strip())
    return found


def run(arguments: argparse.Namespace) -> int:
    """Run the command and return its exit status. Raises ConfigError, TraceError and SetupError."""
    plan = plan_of(arguments)
    plot = plotter(plan.plot, draw) if plan.plot else None
    shown = show(lambda watch: lines_of(plan, watch))
    if plot:
        plot([row for rows in shown for row in rows])
    return 0


def lines_of(plan: Plan, watch: Watch) -> Generator[tuple[str, list[Row]], None, None]:
    """Give the lines that are printed, each with the rows that it shows."""
    runs = [
        Run(traffic, fleet, policy, order, seed, plan.options, plan.hints)
        for traffic, fleet in plan.loads
        for policy in plan.policies
        for order in plan.orders
        for seed in plan.seeds
    ]
    with closing(measure_all(measure, runs, watch, plan.jobs)) as rows:
        if plan.json:
            for row in rows:
                yield to_json(row), [row]
            return
        bounded = any(fleet.slo_ttft_s or fleet.slo_tpot_s for _, fleet in plan.loads)
        table = Table([traffic.label for traffic, _ in plan.loads], plan.policies, plan.orders, slo=bounded)
        head = table.head() + "\n"
        verdicts = []
        for _ in plan.loads:
            cells = []
            for _ in range(len(plan.policies) * len(plan.orders)):
                cell = list(islice(rows, len(plan.seeds)))
                cells.append(cell)
                yield head + table.line(mean_row(cell)), cell
                head = ""
            verdicts.append(judge(cells))
        yield "\n" + "\n".join(verdicts), []
