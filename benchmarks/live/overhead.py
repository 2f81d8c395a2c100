"""What a router costs: CPU time, throughput and added latency of Leafcutter, vLLM's router, SMG, and no router at all.

    python3 -m venv FOLDER && FOLDER/bin/pip install vllm-router==0.1.17 smg
    .venv/bin/python -m benchmarks.live.overhead --peers FOLDER --out FILE

There are two engines that answer at once, one client with 1, 32 or 256 requests at a time, and in between each router
in turn, all of them running from the beginning to the end. A round is every cell with every router, and begins with
another router each time, so that a slow hour of the machine hits all alike. Chats begin with one of eight system
prompts of 1 KB and go on uniquely, so that what a router remembers of prompts does its work. Figures of a measurement:

- CPU, us: of all processes of the router, user and system, for each request. What a router does when nobody asks is in
  it, which shows where few requests come: with one stream of 256 chunks at a time;
- requests/s: from the first request to the end of the last answer. Client and engines share the cores with the router;
- P50 and P99 of the time until an answer's end, ms, and the same less that of direct access in the same round and cell.
  With many requests at a time direct access is slow too: what a router adds then is mostly the wait for its turn;
- first byte: P50 of the time until an answer begins, less that of direct access. The end of a paced stream hides it.

Under `cache_aware`, vLLM's router asks every engine for the tokens of each chat before it chooses. What that costs the
router is in its figures. A real engine would take time to find the tokens, and these do not (`lean_engine.py`).

Printed are medians of the rounds, and in brackets the median of the rounds' ratios to `vllm-router:cache_aware`. Timers
of the engines slip by more than a fast router adds to a paced stream, so its end may come earlier than that of direct
access: a figure that is below zero in a round has no ratio.
"""

from __future__ import annotations

import argparse
import itertools
import math
import os
import shlex
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import uvloop

from benchmarks.live.compared_routers import (
    DIRECT,
    HOW_TO_INSTALL,
    LEAFCUTTER,
    PEERS,
    Running,
    find_peer,
    program_of,
    running,
    version_of,
)
from benchmarks.live.gateway_process import cpu_s, free_port, process_tree
from benchmarks.live.lean_engine import lean_engines
from benchmarks.live.lean_load import Chats, closed_loop, connected
from benchmarks.report import machine, markdown_table, write_json

ROUTERS = (
    *(f"{LEAFCUTTER}:lbgr", f"{LEAFCUTTER}:round_robin"),
    *("vllm-router:cache_aware", "vllm-router:round_robin", "smg:cache_aware"),
)
REFERENCE = "vllm-router:cache_aware"
ANSWERS = {"whole-2k": (2_000, 0), "whole-100k": (100_000, 0), "stream-32": (2_000, 32), "stream-256": (2_000, 256)}
"""Kinds of answers: bytes of a prompt, and chunks of a stream (0: a whole answer)."""
GAP_S = 0.002
HOSTS = ("127.0.0.1", "127.0.0.2")
WARM_S = 0.5

Figures = dict[str, float]
Cell = tuple[str, int]
"""A kind of answers, and how many requests there are at a time."""

COLUMNS = {
    "cpu_us": ("CPU, us", "{:,.0f}"),
    "requests_per_s": ("requests/s", "{:,.0f}"),
    "added_p50_ms": ("added P50, ms", "{:.2f}"),
    "added_p99_ms": ("added P99, ms", "{:.2f}"),
    "added_first_byte_ms": ("added first byte, ms", "{:.2f}"),
    "p50_ms": ("P50, ms", "{:.2f}"),
    "p99_ms": ("P99, ms", "{:.2f}"),
}


# --- measuring --------------------------------------------------------------------------------------------------------


@dataclass
class Bench:
    """The load on one set of engines. No prompt comes twice."""

    engines_pid: int
    chats: dict[str, Chats] = field(default_factory=lambda: {kind: Chats(*ANSWERS[kind]) for kind in ANSWERS})
    numbers: itertools.count[int] = field(default_factory=itertools.count)

    async def measure(self, router: Running, cell: Cell, seconds: float) -> Figures:
        """One router in one cell. A chat on every connection goes before it, which opens those to the engines too."""
        kind, at_a_time = cell
        async with connected(router.urls, at_a_time) as connections:
            await closed_loop(connections, self.chats["whole-2k"], self.numbers.__next__, 0.0)
            processes = process_tree(router.pid) if router.pid else []
            cpu, engines, client = self._cpu_s(processes)
            load = await closed_loop(connections, self.chats[kind], self.numbers.__next__, seconds)
            cpu_after, engines_after, client_after = self._cpu_s(processes)
        count = len(load.latency_s)
        found = {
            "requests": count,
            "requests_per_s": count / load.wall_s,
            "p50_ms": percentile(load.latency_s, 0.5) * 1e3,
            "p99_ms": percentile(load.latency_s, 0.99) * 1e3,
            "first_byte_ms": percentile(load.first_byte_s, 0.5) * 1e3,
            "engines_cpu_us": (engines_after - engines) / count * 1e6,
            "client_cpu_us": (client_after - client) / count * 1e6,
        }
        return found | ({"cpu_us": (cpu_after - cpu) / count * 1e6} if processes else {})

    def _cpu_s(self, processes: Sequence[int]) -> tuple[float, float, float]:
        return cpu_s(processes), cpu_s([self.engines_pid]), time.process_time()


def percentile(values: Sequence[float], share: float) -> float:
    """The least value that so large a share of the values do not exceed."""
    return sorted(values)[math.ceil(share * len(values)) - 1]


Round = dict[Cell, dict[str, Figures]]
"""Of each cell the figures of each router, by its name."""


async def measure_rounds(args: argparse.Namespace, names: Sequence[str]) -> list[Round]:
    port = free_port()
    engines = [f"http://{host}:{port}" for host in HOSTS]
    cells = [(kind, at_a_time) for kind in args.cells for at_a_time in args.concurrency]
    options = {"peers": args.peers, "leafcutter_args": shlex.split(args.leafcutter_args), "log": args.log}
    async with AsyncExitStack() as stack:
        bench = Bench(await stack.enter_async_context(lean_engines(HOSTS, port, gap_s=GAP_S)))
        routers = [await stack.enter_async_context(running(name, engines, **options)) for name in names]
        for router in routers:
            for kind in args.cells:
                await bench.measure(router, (kind, min(32, max(args.concurrency))), min(WARM_S, args.seconds))
        rounds: list[Round] = []
        for number in range(args.rounds):
            start, found = time.perf_counter(), {}
            turn = number % len(routers)
            for cell in cells:
                measured = {
                    router.name: await bench.measure(router, cell, args.seconds)
                    for router in (*routers[turn:], *routers[:turn])
                }
                found[cell] = {name: measured[name] for name in names}
            rounds.append(found)
            print(f"round {number + 1} of {args.rounds}: {time.perf_counter() - start:.0f} s", file=sys.stderr)
    return rounds


# --- comparing --------------------------------------------------------------------------------------------------------


def with_added(routers: Mapping[str, Figures]) -> dict[str, Figures]:
    """The figures of one cell and round, with what each router adds to direct access."""
    pairs = {"added_p50_ms": "p50_ms", "added_p99_ms": "p99_ms", "added_first_byte_ms": "first_byte_ms"}
    direct = routers[DIRECT]
    return {
        name: figures | ({added: figures[raw] - direct[raw] for added, raw in pairs.items()} if name != DIRECT else {})
        for name, figures in routers.items()
    }


def ratios(figures: Figures, reference: Figures) -> Figures:
    """Each figure by the reference's, where both are more than nothing."""
    return {
        name: value / reference[name] for name, value in figures.items() if min(value, reference.get(name, 0.0)) > 0
    }


def medians(figures: Sequence[Figures]) -> Figures:
    """Of each name that all have, the median."""
    names = [name for name in figures[0] if all(name in each for each in figures)] if figures else []
    return {name: statistics.median(each[name] for each in figures) for name in names}


def compare(rounds: Sequence[Round]) -> list[dict[str, Any]]:
    """A row for each cell and router: medians, ratios within the rounds, and what they were made from."""
    rows = []
    for cell, routers in rounds[0].items():
        added = [with_added(each[cell]) for each in rounds]
        for name in routers:
            found = [each[name] for each in added]
            by_reference = [ratios(each[name], each[REFERENCE]) for each in added if REFERENCE in each]
            row = {"answers": cell[0], "at_a_time": cell[1], "router": name, "median": medians(found)}
            rows.append({**row, "ratio": medians(by_reference), "rounds": found})
    return rows


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    def shown(row: Mapping[str, Any], name: str) -> str:
        if name not in row["median"]:
            return "-"
        ratio = f" ({row['ratio'][name]:.2f})" if name in row["ratio"] else ""
        return COLUMNS[name][1].format(row["median"][name]) + ratio

    heads = ["answers", "at a time", "router", *(head for head, _ in COLUMNS.values())]
    lines = [
        [row["answers"], str(row["at_a_time"]), row["router"], *(shown(row, name) for name in COLUMNS)] for row in rows
    ]
    return markdown_table(heads, lines)


# --- the command ------------------------------------------------------------------------------------------------------


def parse(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    programs = ", ".join((LEAFCUTTER, *PEERS))
    parser.add_argument("--routers", nargs="+", default=ROUTERS, help=f"each PROGRAM:POLICY; programs: {programs}")
    parser.add_argument("--cells", nargs="+", default=list(ANSWERS), choices=ANSWERS, help="kinds of answers")
    parser.add_argument("--concurrency", nargs="+", type=int, default=[1, 32, 256], help="requests at a time")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.0, help="of each measurement, before the last answers")
    parser.add_argument("--peers", nargs="+", type=Path, default=[], help="virtual environments with other routers")
    parser.add_argument("--leafcutter-args", default="", help='more for leafcutter, as in "--prefix-block-tokens 32"')
    parser.add_argument("--log", type=Path, default=Path(os.devnull), help="file for the routers' logs")
    parser.add_argument("--out", type=Path, help="file for the figures, JSON")
    args = parser.parse_args(words)
    if wrong := [name for name in args.routers if program_of(name) not in (LEAFCUTTER, *PEERS) or ":" not in name]:
        parser.error(f"--routers: {' '.join(wrong)} is not PROGRAM:POLICY with one of {programs}")
    return args


def run(args: argparse.Namespace) -> dict[str, Any]:
    """All figures, as they are stored."""
    programs = {program: find_peer(program, args.peers) for program in PEERS}
    names = [name for name in args.routers if program_of(name) == LEAFCUTTER or programs[program_of(name)]]
    if missing := [name for name in args.routers if name not in names]:
        print(f"left out, since they are not installed: {' '.join(missing)}. To have them: {HOW_TO_INSTALL}")
    rounds = uvloop.run(measure_rounds(args, [DIRECT, *names]))
    used = dict.fromkeys(program_of(name) for name in names)
    settings = {key: getattr(args, key) for key in ("seconds", "leafcutter_args")}
    versions = {program: version_of(program, programs.get(program)) for program in used}
    return {**machine(), **settings, "gap_s": GAP_S, "versions": versions, "rows": compare(rounds)}


def main() -> None:
    args = parse()
    figures = run(args)
    print(table(figures["rows"]))
    if args.out:
        write_json(args.out, figures)


if __name__ == "__main__":
    main()
