"""How long the gateway stands still: the longest stall of its event loop, and the gaps between a stream's chunks.

Both are measured with an empty memory and with a full one: a prefix index of a million blocks and a full decision log.

    .venv/bin/python -m benchmarks.micro.stall --processes 1 2

Instant engines, the gateway with each number of processes (`stall_gateway`), and clients; the gateway has cores of its
own if there are two or more. Half of the clients read streams whose chunks the engines send 10 ms apart, half ask for
whole answers with a pause between them: about half of what one process could do, since beyond that a turn of the loop
is as long as the queue. All kinds of gateway and memory are measured in turn within each round. Printed are, for each
kind and each of its processes (of the edges the worst), the medians of the rounds:

- stall: the most CPU time that the loop's thread used between two turns of the loop, milliseconds, and its range. Other
  load on the machine does not count, what the gateway itself does (garbage collection, parsing, learning) does;
- collection: the same of the garbage collector alone, the longest walk and the sum of all;
- gap: between the chunks of a stream as a client sees it, P99 and longest, other load on the machine included;
- whole: answers that are no stream, P99.

With `--collector python` a gateway of one process runs under Python's own settings, to compare with.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from benchmarks.live.instant_engine import instant_engines
from benchmarks.live.load import Answer, busy_client, closed_loop
from benchmarks.micro.stall_gateway import CORES, Kind, running
from benchmarks.micro.stall_processes import Figures
from benchmarks.report import machine, markdown_table, spread, write_json
from router.types import EngineId

GAP_S = 0.01
PAUSE_S = 0.04
FULL_BLOCKS = 1_000_000


# --- the clients ------------------------------------------------------------------------------------------------------


async def load(url: str, clients: int, seconds: float) -> list[Answer]:
    """Every other client reads streams, the others whole answers."""
    end = time.perf_counter() + seconds
    streams = [index % 2 == 0 for index in range(clients)]
    return await closed_loop(
        url,
        [
            busy_client(index, end=end, stream=stream, pause_s=3 * PAUSE_S if stream else PAUSE_S)
            for index, stream in enumerate(streams)
        ],
    )


def worst(figures: Sequence[tuple[str, Figures]]) -> dict[str, Figures]:
    """The largest of each figure among the processes of each role."""
    found: dict[str, Figures] = {}
    for role, each in figures:
        known = found.setdefault(role, each)
        found[role] = {name: max(value, known[name]) for name, value in each.items()}
    return found


async def measure(args: argparse.Namespace, kind: Kind) -> dict[str, Figures]:
    """The figures of each role in a gateway of that kind; those of the clients stand beside each."""
    hosts, engine_port = [f"127.0.0.{n + 1}" for n in range(args.engines)], args.port + 1
    engines = {EngineId(f"engine-{n}"): f"http://{host}:{engine_port}" for n, host in enumerate(hosts)}
    url = f"http://127.0.0.1:{args.port}"
    async with (
        instant_engines(hosts, engine_port, chunks=args.chunks, gap_s=GAP_S),
        running(kind, engines, port=args.port, collector=args.collector) as processes,
    ):
        await load(url, args.clients, args.warm)
        for each in processes:
            await each.take()
        answers = await load(url, args.clients, args.seconds)
        found = worst([(each.role, await each.take()) for each in processes])
    gaps = [after - before for answer in answers if answer.streamed for before, after in pairwise(answer.chunk_s)]
    wholes = [answer.latency_s for answer in answers if not answer.streamed]
    seen = {
        "gap_p99_ms": statistics.quantiles(gaps, n=100)[98] * 1e3,
        "gap_max_ms": max(gaps) * 1e3,
        "whole_p99_ms": statistics.quantiles(wholes, n=100)[98] * 1e3,
        "answers": float(len(wholes)),
    }
    return {role: figures | seen for role, figures in found.items()}


# --- the command ------------------------------------------------------------------------------------------------------


def compare(rounds: Sequence[Mapping[Kind, Mapping[str, Figures]]]) -> list[dict[str, Any]]:
    """A row for each kind and role: the medians over the rounds, and the longest stall of every round."""
    rows: list[dict[str, Any]] = []
    for kind, roles in rounds[0].items():
        for role in roles:
            found = [each[kind][role] for each in rounds]
            middle = {name: statistics.median(each[name] for each in found) for name in found[0]}
            about = {"processes": kind.processes, "order": kind.order, "memory": kind.memory, "process": role}
            rows.append({**about, **middle, "stalls_ms": [each["stall_ms"] for each in found]})
    return rows


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    def cells(row: Mapping[str, Any]) -> list[str]:
        names = [str(row["processes"]), f"`{row['order']}`", row["memory"], row["process"]]
        return [
            *names,
            f"{row['collection_max_ms']:.1f}",
            spread(row["stalls_ms"], 1),
            f"{row['gap_p99_ms']:.1f}",
        ]

    heads = [
        "edges",
        "order",
        "memory",
        "process",
        "longest collection, ms",
        "longest stall, ms",
        "P99 of chunk gaps, ms",
    ]
    return markdown_table(heads, map(cells, rows))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--processes", type=int, nargs="+", default=[1], help="edges of each gateway; 1: one process")
    parser.add_argument("--orders", nargs="+", default=["lru", "rlt_gix"], help="eviction orders of the engines")
    parser.add_argument("--engines", type=int, default=2)
    parser.add_argument("--blocks", type=int, default=FULL_BLOCKS, help="of a full prefix index")
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--chunks", type=int, default=32, help="of a stream")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=15.0, help="of each measurement")
    parser.add_argument("--warm", type=float, default=2.0, help="seconds of load before each")
    parser.add_argument("--collector", choices=("tended", "python"), default="tended")
    parser.add_argument("--port", type=int, default=18300)
    parser.add_argument("--out", type=Path, help="file for the figures, JSON")
    args = parser.parse_args()
    if args.collector == "python" and args.processes != [1]:
        parser.error("--collector python is for one process: an edge always tends its collector")
    return args


def main() -> None:
    args = parse()
    kinds = [
        Kind(n, order, full, args.blocks) for n in args.processes for order in args.orders for full in (False, True)
    ]
    if len(CORES) > 1:
        os.sched_setaffinity(0, CORES[1:])
    rounds: list[dict[Kind, dict[str, Figures]]] = []
    for number in range(1, args.rounds + 1):
        rounds.append({})
        for kind in kinds:
            rounds[-1][kind] = asyncio.run(measure(args, kind))
            stalls = ", ".join(f"{role} {found['stall_ms']:.1f} ms" for role, found in rounds[-1][kind].items())
            print(
                f"round {number} of {args.rounds}: {kind.processes} {kind.order} {kind.memory}: {stalls}",
                file=sys.stderr,
            )
        if args.out:  # after every round, so that an end before the last one loses no figures
            names = ("engines", "blocks", "clients", "chunks", "seconds", "collector")
            settings = {name: getattr(args, name) for name in names}
            write_json(args.out, {**machine(), **settings, "rounds": number, "rows": compare(rounds)})
    print(table(compare(rounds)))


if __name__ == "__main__":
    main()
