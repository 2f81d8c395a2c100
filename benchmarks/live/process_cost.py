"""CPU time of the gateway's processes, per request and per chunk of a stream, with one process and with several.

    .venv/bin/python -m benchmarks.live.process_cost --out FILE

For every number of processes a gateway runs under `lbgr` in front of eight engines that answer at once (`lean_engine`),
all of them from the beginning to the end, and each is asked in turn within each round. With several processes the edges
together, the router process and the supervisor are told apart. A chunk costs what a stream of 256 chunks that come 2 ms
apart costs more than a whole answer, by the number of its chunks. CPU time is that of all threads of a process, user
and system. The engines and the client share the machine's cores, so the more processes run, the more of that time is
lost to caches that another process has filled.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import os
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import uvloop

from benchmarks.live.gateway_process import cpu_s, free_port, parts, running_gateway
from benchmarks.live.lean_engine import lean_engines
from benchmarks.live.lean_load import Chats, closed_loop, connected
from benchmarks.report import machine, markdown_table, spread, write_json
from router.core.options import POLICIES

CHUNKS, GAP_S, PROMPT_BYTES = 256, 0.002, 2_000
STANDBY_S = 3.0  # the standby of the router process has imported everything by then

Figures = dict[str, float]
"""CPU time of one part of a gateway in one round, us: `request` of a whole answer, and `chunk`."""
Round = dict[int, dict[str, Figures]]
"""By the number of processes, the figures of each part."""


async def measure_rounds(args: argparse.Namespace) -> list[Round]:
    hosts, port = [f"127.0.0.{index + 1}" for index in range(args.engines)], free_port()
    engines = [f"http://{host}:{port}" for host in hosts]
    chats, numbers = {0: Chats(PROMPT_BYTES, 0), CHUNKS: Chats(PROMPT_BYTES, CHUNKS)}, itertools.count()

    async def used_us(url: str, found: Mapping[str, list[int]], chunks: int) -> Figures:
        """CPU time of each part of a gateway for one request, us."""
        async with connected((url,), args.clients) as connections:
            await closed_loop(connections, chats[0], numbers.__next__, 0.0)
            before = {part: cpu_s(pids) for part, pids in found.items()}
            load = await closed_loop(connections, chats[chunks], numbers.__next__, args.seconds)
            return {part: (cpu_s(pids) - before[part]) / len(load.latency_s) * 1e6 for part, pids in found.items()}

    async with AsyncExitStack() as stack:
        await stack.enter_async_context(lean_engines(hosts, port, gap_s=GAP_S))
        gateways = {}
        for count in args.processes:
            flags = ["--policy", args.policy, "--processes", str(count), "--log-level", "warning"]
            gateways[count] = await stack.enter_async_context(running_gateway(engines, *flags, log=args.log))
        await asyncio.sleep(STANDBY_S)
        rounds: list[Round] = []
        for number in range(args.rounds + 1):
            start, found = time.perf_counter(), {}
            for count, (url, pid) in gateways.items():
                processes = parts(pid)
                wholes, streams = await used_us(url, processes, 0), await used_us(url, processes, CHUNKS)
                found[count] = {
                    part: {"request": wholes[part], "chunk": (streams[part] - wholes[part]) / CHUNKS} for part in wholes
                }
            rounds.append(found)
            print(f"round {number} of {args.rounds}: {time.perf_counter() - start:.0f} s", file=sys.stderr)
        return rounds[1:]  # the first round warms up


def compare(rounds: Sequence[Round]) -> list[dict[str, Any]]:
    """A row for each number of processes and each part: its figures in every round."""
    return [
        {"processes": count, "part": part, **{kind: [each[count][part][kind] for each in rounds] for kind in figures}}
        for count, parts_of in rounds[0].items()
        for part, figures in parts_of.items()
    ]


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    heads = ["processes", "part", "us a request", "us a chunk"]
    return markdown_table(
        heads,
        [[str(row["processes"]), row["part"], spread(row["request"], 0), spread(row["chunk"], 0)] for row in rows],
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2, 4], help="edges of each gateway")
    parser.add_argument("--policy", default="lbgr", choices=POLICIES)
    parser.add_argument("--engines", type=int, default=8)
    parser.add_argument("--clients", type=int, default=32, help="requests at a time")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0, help="of each measurement, before the last answers")
    parser.add_argument("--log", type=Path, default=Path(os.devnull), help="file for the gateways' logs")
    parser.add_argument("--out", type=Path, help="file for the figures, JSON")
    args = parser.parse_args()
    rows = compare(uvloop.run(measure_rounds(args)))
    print(table(rows))
    if args.out:
        settings = {key: getattr(args, key) for key in ("policy", "engines", "clients", "seconds")}
        write_json(args.out, {**machine(), **settings, "chunks": CHUNKS, "gap_s": GAP_S, "rows": rows})


if __name__ == "__main__":
    main()
