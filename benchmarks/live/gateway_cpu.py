"""CPU time of the gateway per request: a real `leafcutter serve` between a client and instant engines, each a process.

    .venv/bin/python -m benchmarks.live.gateway_cpu

The engines answer at once with a fixed completion, so all that is measured is the way through: reading, parsing,
choosing, forwarding, watching, learning. CPU time is the gateway process's own (user and system), which other load on
the machine disturbs less than latency. Quote medians.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import time
from pathlib import Path

from benchmarks.live.gateway_process import cpu_s, free_port, running_gateway
from benchmarks.live.instant_engine import instant_engines
from benchmarks.live.load import chat_body, closed_loop
from router.core.options import POLICIES


async def measure(args: argparse.Namespace, policy: str, stream: bool) -> list[float]:
    """CPU microseconds per request of each round."""
    hosts, port = [f"127.0.0.{index + 1}" for index in range(args.engines)], free_port()
    urls = [f"http://{host}:{port}" for host in hosts]
    rounds: list[float] = []
    async with (
        instant_engines(hosts, port, chunks=args.chunks),
        running_gateway(urls, "--policy", policy, log=args.log) as (url, pid),
    ):
        for number in range(args.rounds + 1):
            numbers = range(number * args.requests, (number + 1) * args.requests)
            # Made beforehand and shared by the clients: whoever has its answer takes the next one.
            bodies = iter([(0.0, chat_body(each, stream=stream)) for each in numbers])
            before = cpu_s(pid)
            await closed_loop(url, [bodies] * args.clients)
            rounds.append((cpu_s(pid) - before) / args.requests * 1e6)
    return rounds[1:]  # the first one warms up


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--policies", nargs="+", default=["round_robin", "lbgr"], choices=POLICIES)
    parser.add_argument("--engines", type=int, default=4)
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
            spread = f"{statistics.median(rounds):.0f} us [{min(rounds):.0f}-{max(rounds):.0f}]"
            print(f"{policy:12} {kind:14} {spread} CPU a request ({time.perf_counter() - start:.0f} s)", flush=True)


if __name__ == "__main__":
    main()
