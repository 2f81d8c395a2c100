"""What one decision costs the gateway's process: CPU time of the choice, `Router.route` and `Router.complete`, in us.

    .venv/bin/python -m benchmarks.micro.decision_time

A closed loop keeps `--load` requests in flight for each engine: whenever one ends, the next is routed. Prompts are
shared as in the paper's workload: the first half by a group of prompts, eight groups an engine, the rest new; lengths
spread around the mean. Engines answer on a clock of their own by a simple rule, so that queues, hits and predictions
differ between them; answers confirm the hits that the index expects. `choice` is candidates, index walk, the scores of
all of them and the pick; `route` adds booking, index update and log. Times are the thread's CPU time of a call, less
what the clock itself costs: the median and the 99th percentile of each run, and of several runs the median of those.
Run it alone on a core.
"""

from __future__ import annotations

import argparse
import heapq
import json
import random
import statistics
from collections.abc import Callable, Iterator, Sequence
from itertools import count, islice, pairwise
from pathlib import Path
from time import thread_time_ns
from typing import Any

from benchmarks.report import machine, markdown_table, write_json
from router.core.options import RoutingOptions
from router.core.router import Router
from router.policies.base import RoutingContext
from router.types import (
    BlockKey,
    Booking,
    Decision,
    Ending,
    EngineId,
    EngineInfo,
    Outcome,
    ParsedRequest,
    Prompt,
    Score,
)

BLOCK_TOKENS, ENGINE_BLOCK = 64, 16
GROUPS = 8  # an engine
SPREAD = (0.4, 0.8, 1.0, 1.2, 1.6)  # of the lengths around their mean
OUTPUT_TOKENS = (20, 60, 100)


def prompts(rng: random.Random, groups: int, blocks: int) -> Iterator[Prompt]:
    """Endless prompts; the first half of each is that of its group."""
    mask = (1 << 64) - 1
    keys = (BlockKey(n * 0x9E3779B97F4A7C15 & mask) for n in count(1))  # spread like hashes
    heads = [list(islice(keys, max(1, round(blocks * rng.choice(SPREAD) / 2)))) for _ in range(groups)]
    while True:
        head = rng.choice(heads)
        # New numbers each time, as hashing a prompt makes them: looking one up compares more than identity.
        path = (*(BlockKey(key + 0) for key in head), *islice(keys, len(head)))
        yield Prompt(BlockKey(0), path, BLOCK_TOKENS, len(path) * BLOCK_TOKENS, (), True)


class TimedRouter(Router):
    """A router that notes when the choice is made."""

    chosen_ns = 0

    def _book(self, routing: RoutingContext, chosen: Score) -> Booking:
        self.chosen_ns = thread_time_ns()
        return super()._book(routing, chosen)


class Loop:
    """One run. Events are (time, serial number, decision, whether it is the end or the first token)."""

    def __init__(self, args: argparse.Namespace, engines: int, order: str, blocks: int, seed: int) -> None:
        self.rng = random.Random(seed)
        self.router = TimedRouter(
            RoutingOptions(policy=args.policy, shadow=tuple(args.shadow)), rng=random.Random(seed)
        )
        self.stream = prompts(self.rng, GROUPS * engines, blocks)
        self.unstreamed = args.unstreamed
        self.events: list[tuple[float, int, Decision, bool]] = []
        self.serial = count()
        self.choice_ns: list[int] = []
        self.route_ns: list[int] = []
        self.complete_ns: list[int] = []
        self.hits: list[float] = []  # shares of the prompts
        info = EngineInfo(("m",), order, ENGINE_BLOCK, args.capacity // ENGINE_BLOCK)
        for number in range(engines):
            name = EngineId(f"engine-{number}")
            self.router.add_engine(name)
            self.router.set_info(name, info)
            self.router.set_health(name, True)
        for number in range(args.load * engines):
            self.send(number / (4.0 * engines))

    def send(self, now: float) -> None:
        serial = next(self.serial)
        stream = self.rng.random() >= self.unstreamed
        request = ParsedRequest(f"request-{serial}", "/v1/completions", "m", next(self.stream), stream, None)
        begun = thread_time_ns()
        decision = self.router.route(request, now)
        self.route_ns.append(thread_time_ns() - begun)
        self.choice_ns.append(self.router.chosen_ns - begun)
        self.hits.append(decision.hit_tokens / decision.prompt_tokens)
        view = self.router._fleet.view(decision.engine)
        first_s = now + 0.01 + 1e-4 * view.waiting_tokens * self.rng.uniform(0.9, 1.1)
        done_s = first_s + self.rng.choice(OUTPUT_TOKENS) * (0.02 + 2e-4 * view.in_flight)
        heapq.heappush(self.events, (first_s, serial, decision, False))
        heapq.heappush(self.events, (done_s, serial, decision, True))

    def complete_next(self) -> None:
        """Go on to the next end of a request, and send another in its place."""
        while True:
            now, _, decision, is_end = heapq.heappop(self.events)
            if is_end:
                break
            if decision.request.stream:
                self.router.first_token(decision, now)
        tokens = self.rng.choice(OUTPUT_TOKENS)
        cached = int(decision.hit_tokens)
        outcome = Outcome(Ending.OK, now, now, decision.request.prompt.units, cached, tokens)
        begun = thread_time_ns()
        self.router.complete(decision, outcome)
        self.complete_ns.append(thread_time_ns() - begun)
        self.send(now)


def clock_ns() -> float:
    """What one reading of the clock costs."""
    readings = [thread_time_ns() for _ in range(2001)]
    return statistics.median([later - sooner for sooner, later in pairwise(readings)])


def measure(args: argparse.Namespace, engines: int, order: str, blocks: int) -> dict[str, Any]:
    runs: list[dict[str, float]] = []
    for seed in range(args.runs):
        loop = Loop(args, engines, order, blocks, seed)
        for _ in range(max(args.requests, args.warm * engines)):
            loop.complete_next()
        for noted in (loop.choice_ns, loop.route_ns, loop.complete_ns, loop.hits):
            noted.clear()
        for _ in range(args.requests):
            loop.complete_next()
        assert loop.router.status().faults == 0
        runs.append(
            {
                **figures("choice", loop.choice_ns),
                **figures("route", loop.route_ns),
                **figures("complete", loop.complete_ns),
                "hit_share": statistics.mean(loop.hits),
            }
        )
    middle = {key: round(statistics.median([run[key] for run in runs]), 3) for key in runs[0]}
    return {"engines": engines, "order": order, "blocks": blocks, "capacity": args.capacity, **middle}


def figures(name: str, times_ns: Sequence[int]) -> dict[str, float]:
    cost = clock_ns()
    cuts = statistics.quantiles(times_ns, n=100)
    return {
        f"{name}_us": (statistics.median(times_ns) - cost) / 1e3,
        f"{name}_p10_us": (cuts[9] - cost) / 1e3,
        f"{name}_p99_us": (cuts[98] - cost) / 1e3,
        f"{name}_mean_us": (statistics.mean(times_ns) - cost) / 1e3,
    }


def table(rows: Sequence[dict[str, Any]]) -> str:
    heads = ["engines", "order", "blocks", "choice, us", "P99", "route, us", "P99", "complete, us", "P99"]
    keys = [f"{name}_{figure}us" for name in ("choice", "route", "complete") for figure in ("", "p99_")]
    lines = [
        [f"{row['engines']:,}", f"`{row['order']}`", str(row["blocks"]), *(f"{row[key]:.0f}" for key in keys)]
        for row in rows
    ]
    return markdown_table(heads, lines)


def main(show: Callable[[str], None] = print) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--engines", nargs="+", type=int, default=[4, 16, 64, 256, 1000])
    parser.add_argument("--orders", nargs="+", default=["lru", "rlt_gix"], help="eviction order of the engines")
    parser.add_argument("--blocks", nargs="+", type=int, default=[25, 200], help="mean index blocks of a prompt")
    parser.add_argument("--load", type=int, default=8, help="requests in flight, mean of the engines")
    parser.add_argument("--capacity", type=int, default=128_000, help="size of an engine's cache, tokens")
    parser.add_argument("--unstreamed", type=float, default=0.0, help="share of requests without a first token")
    parser.add_argument("--policy", default="lbgr")
    parser.add_argument("--shadow", nargs="+", default=[])
    parser.add_argument("--requests", type=int, default=2000, help="timed ones of each run")
    parser.add_argument("--warm", type=int, default=16, help="untimed requests before, an engine")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--out", type=Path, help="file for the rows and the machine, JSON")
    args = parser.parse_args()
    rows = []
    for blocks in args.blocks:
        for order in args.orders:
            for engines in args.engines:
                rows.append(measure(args, engines, order, blocks))
                show(json.dumps(rows[-1]))
    if args.out:
        write_json(args.out, {**machine(), "policy": args.policy, "rows": rows})
    show(table(rows))


if __name__ == "__main__":
    main()
