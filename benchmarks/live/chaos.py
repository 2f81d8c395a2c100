"""Engines that fail in every way there is, and clients that misbehave: what is lost, and whether all is given back.

    .venv/bin/python -m benchmarks.live.chaos --processes 1 2 --out chaos.json

A real `leafcutter serve`, started anew for each scenario, in front of engines that are processes of their own and fail
as the scenario says: at once, at every position of an answer, by a signal, or by nonsense. At least one of them is well
all the time. Every answer is checked to the byte and counted as one of these:

- well: what the engine says.
- broken: a stream of which the client had seen a part when its engine failed. It must end with an error event.
- lost: all others. An engine that was well all the time could have served it.

Afterwards no request may be in flight or waiting, and the gateway's file descriptors must be back. The exit status is 1
if in any scenario LOST_SHARE of the requests are lost, a stream is broken by an engine that breaks none, or anything is
kept.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import re
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import uvloop

from benchmarks.live.chaos_load import Load
from benchmarks.live.chaos_scenarios import SCENARIOS, Engine, Stage
from benchmarks.live.endurance import METRICS, SETTLE_S, descriptors_back, settled
from benchmarks.live.gateway_process import free_port, running_gateway
from benchmarks.live.lean_load import connected
from benchmarks.report import conclude, markdown_table

ENGINES = 3
LOST_SHARE = 0.01
WARM_UP = 40  # requests, each on a connection of its own, so that every process gets some
BACK_S = 30.0  # descriptors may take so long to be back: a look whether an engine hangs takes 20 s
IDLE_S = 10.0  # then idle connections to engines have been closed
FLAGS = ("--health-check-interval-secs", "0.5", "--health-check-timeout-secs", "1")
_GAUGES = re.compile(rb"^(?:leafcutter_in_flight{.*}|leafcutter_queue_length\S*) (\S+)$", re.MULTILINE)


async def play(name: str, processes: int, engines: Sequence[Engine], args: argparse.Namespace) -> dict[str, Any]:
    """Play one scenario before a gateway of its own."""
    scenario = SCENARIOS[name]
    flags = ["--policy", args.policy, "--processes", str(processes), *FLAGS, *scenario.flags]
    urls = [engine.url for engine in engines]
    begun_s = time.monotonic()
    async with running_gateway(urls, *flags, log=args.log) as (url, pid):
        await all_serve(url, processes)
        await Load(url).run(WARM_UP, WARM_UP)  # each process opens files of metrics with its first request
        await asyncio.sleep(IDLE_S)
        before = (await settled(pid)).descriptors
        load = Load(url)
        stage = Stage(url, engines, load, args.requests, args.storm)
        extra = await scenario.play(stage)
        await asyncio.gather(*(engine.heal() for engine in engines))
        kept = await gauges(url, len(urls))
        after = await descriptors_back(pid, before, BACK_S)
    return {
        "scenario": name,
        "processes": processes,
        **load.tally.figures(),
        **(extra or {}),
        "gauges": kept,
        "descriptors_before": before,
        "descriptors_after": after,
        "seconds": time.monotonic() - begun_s,
    }


async def all_serve(url: str, processes: int) -> None:
    """Wait until as many edges serve, if there are several."""
    async with connected([url], 1) as (connection,):
        while True:
            page = await connection.ask(METRICS)
            if processes == 1 or b"\nleafcutter_edges %d.0\n" % processes in page:
                return
            await asyncio.sleep(0.1)


async def gauges(url: str, engines: int) -> int:
    """How many requests are in flight or wait once there are none, or when that has taken too long."""
    end_s = time.monotonic() + SETTLE_S
    async with connected([url], 1) as (connection,):
        while True:
            found = _GAUGES.findall(await connection.ask(METRICS))
            assert len(found) > engines, "the page has a line for each engine, and one for the queue"
            count = sum(int(float(each)) for each in found)
            if not count or time.monotonic() >= end_s:
                return count
            await asyncio.sleep(0.1)


async def measure(args: argparse.Namespace) -> dict[str, Any]:
    rows = []
    async with AsyncExitStack() as stack:
        engines = [await stack.enter_async_context(Engine(free_port())) for _ in range(ENGINES)]
        for name in args.only or SCENARIOS:
            for processes in args.processes:
                rows.append(await play(name, processes, engines, args))
                print(table(rows[-1:]).splitlines()[-1], file=sys.stderr)
    return {"policy": args.policy, "engines": ENGINES, "rows": rows}


def wrong(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """What should not be so, in sentences."""
    found = []
    for row in rows:
        where, lost = f"{row['scenario']}, {row['processes']} processes", sum(row["lost"].values())
        if lost > LOST_SHARE * row["requests"]:
            found.append(f"{where}: {lost} of {row['requests']} requests are lost: {row['lost']}.")
        if row["broken"] and not SCENARIOS[row["scenario"]].breaks:
            found.append(f"{where}: {row['broken']} streams are broken, but no engine breaks any.")
        if row["gauges"]:
            found.append(f"{where}: {row['gauges']} requests are still in flight or waiting.")
        if row["descriptors_after"] > row["descriptors_before"]:
            kept = row["descriptors_after"] - row["descriptors_before"]
            found.append(f"{where}: {kept} file descriptors are not back.")
        if row.get("staying"):
            found.append(f"{where}: {row['staying']} clients that misbehave have not been let go.")
    return found


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """One line for each scenario. If it was played with several numbers of processes, a cell has a figure for each."""
    heads = ["scenario", "requests", "well", "left", "broken", "lost", "in flight", "descriptors before, after"]
    cells: dict[str, list[list[str]]] = {}
    for row in rows:
        counts = [f"{row[key]:,}" for key in ("requests", "well", "left", "broken")]
        counts += [str(sum(row["lost"].values())), str(row["gauges"])]
        cells.setdefault(row["scenario"], []).append(
            [*counts, f"{row['descriptors_before']}, {row['descriptors_after']}"]
        )
    return markdown_table(heads, [[name, *map(" / ".join, zip(*found, strict=True))] for name, found in cells.items()])


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--only", nargs="+", choices=SCENARIOS, metavar="SCENARIO", help="play no others")
    parser.add_argument("--processes", type=int, nargs="+", default=[1])
    parser.add_argument("--policy", default="lbgr")
    parser.add_argument("--requests", type=int, default=300, help="of each scenario in which engines fail at once")
    parser.add_argument("--storm", type=int, default=10_000, help="requests of the scenario `storm`")
    parser.add_argument("--log", type=Path, default=Path(os.devnull), help="file for the gateways' logs")
    parser.add_argument("--out", type=Path, help="file for the figures, JSON")
    return parser.parse_args(argv)


def run(args: argparse.Namespace) -> dict[str, Any]:
    return uvloop.run(measure(args))


def main() -> int:
    args = parse()
    figures = run(args)
    return conclude(figures, args.out, table(figures["rows"]), wrong(figures["rows"]))


if __name__ == "__main__":
    sys.exit(main())
