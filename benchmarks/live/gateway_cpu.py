"""CPU time of the gateway per request: a real `leafcutter serve` between a client and instant engines, each a process.

    .venv/bin/python -m benchmarks.live.gateway_cpu

The engines answer at once with a fixed completion, so all that is measured is the way through: reading, parsing,
choosing, forwarding, watching, learning. CPU time is the gateway process's own (user and system), which other load on
the machine disturbs less than latency. Quote medians.

With `--processes 2` and more it is told apart by process: all edges together, the router process with its standby, and
the supervisor.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import time
from pathlib import Path

from benchmarks.live.gateway_process import cpu_s, free_port, parts, running_gateway
from benchmarks.live.instant_engine import instant_engines
from benchmarks.live.load import chat_body, closed_loop
from router.core.options import POLICIES

STANDBY_S = 3.0  # the standby of the router process has imported everything by then


async def measure(args: argparse.Namespace, policy: str, stream: bool) -> dict[str, list[float]]:
    """CPU microseconds per request of each round, by the part of the gateway."""
    hosts, port = [f"127.0.0.{index + 1}" for index in range(args.engines)], free_port()
    urls = [f"http://{host}:{port}" for host in hosts]
    rounds: dict[str, list[float]] = {}
    flags = ["--policy", policy, "--processes", str(args.processes)]
    async with (
        instant_engines(hosts, port, chunks=args.chunks),
        running_gateway(urls, *flags, log=args.log) as (url, pid),
    ):
        await asyncio.sleep(STANDBY_S if args.processes > 1 else 0)
        found = parts(pid)
        for number in range(args.rounds + 1):
            numbers = range(number * args.requests, (number + 1) * args.requests)
            # Made beforehand and shared by the clients: whoever has its answer takes the next one.
            bodies = iter([(0.0, chat_body(each, stream=stream)) for each in numbers])
            before = {part: sum(map(cpu_s, pids)) for part, pids in found.items()}
            await closed_loop(url, [bodies] * args.clients)
            for part, pids in found.items():
                used_s = sum(map(cpu_s, pids)) - before[part]
                rounds.setdefault(part, []).append(used_s / args.requests * 1e6)
    return {part: each[1:] for part, each in rounds.items()}  # the first round warms up


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--policies", nargs="+", default=["round_robin", "lbgr"], choices=POLICIES)
    parser.add_argument("--engines", type=int, default=4)
    parser.add_argument("--processes", type=int, default=1, help="edges of the gateway")
    parser.add_argument("--requests", type=int, default=2000, help="of each round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--clients", type=int, default=8, help="requests at a time")
    parser.add_argument("--chunks", type=int, default=20, help="of a stream")
    parser.add_argument("--log", type=Path, default=Path(os.devnull), help="file for the gateway's log")
    args = parser.parse_args()
    for policy in args.policies:
        for stream in (False, True):
            start = time.perf_counter()
            rounds = asyncio.run(measure(args, policy, stream))
            kind = f"stream of {args.chunks}" if stream else "whole answer"
            for part, each in rounds.items():
                spread = f"{statistics.median(each):.0f} us [{min(each):.0f}-{max(each):.0f}]"
                took_s = time.perf_counter() - start
                print(f"{policy:12} {kind:14} {part:10} {spread} CPU a request ({took_s:.0f} s)", flush=True)


if __name__ == "__main__":
    main()
