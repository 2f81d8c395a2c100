"""Routing policies x eviction orders on real engines, in one run: a shared-prefix or a multi-turn chat workload.

    .venv/bin/python -m benchmarks.live.live_ab --workload gsp --out benchmarks/results/live_ab.json

For every order the same number of engines runs all the time (those not measured are idle), so that cells can be
interleaved without restarts: each repetition visits every cell once, in an order of its own, over the very same
sessions. Before each visit the engines' caches are emptied and a fresh gateway starts, which learns from nothing; the
first `--warm-up` share of a visit is not counted in latencies.

The workloads are those of workload.py. The hit rate is vLLM's own: prefix_cache_hits / prefix_cache_queries over the
visit.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import statistics
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.live.gateway_process import running_gateway
from benchmarks.live.load import replay
from benchmarks.live.vllm_api import model_name, prefix_cache_counters, reset_prefix_caches
from benchmarks.live.workload import WORKLOADS, add_options, fill_defaults
from benchmarks.report import machine, markdown_table, spread, write_json
from engine_patches.orders import ORDERS
from engine_patches.settings import OFF
from router.config import configure_up
from router.core.options import POLICIES
from router.engines import demo_model
from router.engines.launch import Engine, Launch, plan
from router.engines.up import GPU_MODEL, count_gpus, start_all


@dataclass(frozen=True)
class Visit:
    """One cell's figures over one repetition; times in seconds, over the requests after the warm-up."""

    policy: str
    order: str
    repetition: int
    requests: int
    failed: int
    hit_rate: float
    mean_s: float
    p95_s: float
    ttft_mean_s: float
    ttft_p95_s: float
    share_max: float
    """Largest share of the requests that one engine served."""


async def visit(
    args: argparse.Namespace, policy: str, order: str, launches: Sequence[Launch], repetition: int, log: Path
) -> Visit:
    """One cell, once: empty caches, a fresh gateway, the repetition's sessions."""
    sessions = WORKLOADS[args.workload](args, args.seed + repetition)
    requests = sum(len(session.turns) for session in sessions)
    urls = [launch.url for launch in launches]
    await reset_prefix_caches(urls)
    model = await model_name(urls[0])
    before = await prefix_cache_counters(urls)
    async with running_gateway(urls, "--policy", policy, "--seed", "1", log=log) as (url, _):
        answers = await replay(url, model, sessions)
    after = await prefix_cache_counters(urls)
    counted = answers[int(args.warm_up * len(answers)) :]
    latency, ttft = [answer.latency_s for answer in counted], [answer.ttft_s for answer in counted]
    served = Counter(answer.engine for answer in answers)
    return Visit(
        policy=policy,
        order=order,
        repetition=repetition,
        requests=requests,
        failed=requests - len(answers),
        hit_rate=after.hit_rate_since(before),
        mean_s=statistics.fmean(latency),
        p95_s=statistics.quantiles(latency, n=20)[-1],
        ttft_mean_s=statistics.fmean(ttft),
        ttft_p95_s=statistics.quantiles(ttft, n=20)[-1],
        share_max=max(served.values()) / len(answers),
    )


def plan_fleets(args: argparse.Namespace, folder: Path) -> dict[str, list[Launch]]:
    """The engines of every order: `--engines` each, all on this machine at once."""
    gpus = count_gpus()
    cores = sorted(os.sched_getaffinity(0))
    model = args.model or (GPU_MODEL if gpus else str(demo_model.ensure(os.environ)))
    os.environ["VLLM_SERVER_DEV_MODE"] = "1"  # for /reset_prefix_cache
    fleets = {}
    for number, order in enumerate(args.orders):
        config = configure_up(
            engines=args.engines,
            eviction=order,
            eviction_seed=args.seed,
            engine_port=args.engine_port + 20 * number,
            num_gpu_blocks=args.num_gpu_blocks,
            block_size=args.block_size,
            max_model_len=args.max_model_len,
            log_dir=str(folder / order),
            engine_args=tuple(args.engine_args.split()),
        )
        fleets[order] = plan(config, model, gpus, cores)
    return fleets


async def measure(args: argparse.Namespace) -> list[Visit]:
    folder = Path(tempfile.mkdtemp(prefix="live_ab-"))
    print(f"logs in {folder}", file=sys.stderr)
    fleets = plan_fleets(args, folder)
    engines: list[Engine] = []
    visits: list[Visit] = []
    try:
        for fleet in fleets.values():  # one order after the other: start-up is the memory peak
            await start_all(fleet, engines, timeout_s=900)
        cells = [(policy, order) for policy in args.policies for order in args.orders]
        for repetition in range(args.repetitions):
            random.Random(args.seed + repetition).shuffle(cells)
            for policy, order in cells:
                found = await visit(args, policy, order, fleets[order], repetition, folder / "gateway.log")
                visits.append(found)
                print(f"{len(visits)}/{len(cells) * args.repetitions} {found}", file=sys.stderr, flush=True)
    finally:
        await asyncio.gather(*(engine.stop() for engine in engines))
    return visits


def table(visits: Sequence[Visit], cells: Sequence[tuple[str, str]]) -> str:
    """Medians over the repetitions with [lowest-highest], and ratios to the first cell.

    A ratio is the median of the ratios within each repetition, whose visits share their requests and lie minutes apart.
    """
    columns = ("hit_rate", "mean_s", "p95_s", "ttft_mean_s", "ttft_p95_s")
    heads = "policy + order", "hit rate", "mean s", "P95 s", "TTFT mean s", "TTFT P95 s", "mean, ratio", "P95, ratio"
    rows: list[list[str]] = []
    by_cell = {
        cell: sorted((v for v in visits if (v.policy, v.order) == cell), key=lambda v: v.repetition) for cell in cells
    }
    for cell, mine in by_cell.items():
        shown = [spread([getattr(visit, column) for visit in mine], 3) for column in columns]
        for column in ("mean_s", "p95_s"):
            pairs = zip(mine, by_cell[cells[0]], strict=True)
            shown.append(spread([getattr(visit, column) / getattr(base, column) for visit, base in pairs], 2))
        rows.append([" + ".join(cell), *shown])
    return markdown_table(heads, rows)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--policies", nargs="+", default=["round_robin", "lbgr"], choices=POLICIES)
    parser.add_argument("--orders", nargs="+", default=["lru", "rlt"], choices=[OFF, *ORDERS])
    parser.add_argument("--engines", type=int, default=2, help="engines of each order")
    parser.add_argument("--repetitions", type=int, default=3)
    add_options(parser)
    parser.add_argument("--warm-up", type=float, default=0.1, help="share of the requests not counted in latencies")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--model")
    parser.add_argument("--num-gpu-blocks", type=int, default=256)
    parser.add_argument("--block-size", type=int, default=32)
    parser.add_argument("--max-model-len", type=int, default=4096)
    parser.add_argument("--engine-port", type=int, default=18100)
    parser.add_argument("--engine-args", default="", help="more arguments for every engine, in one string")
    parser.add_argument("--show", type=Path, metavar="FILE", help="measure nothing: print the table of a file of --out")
    parser.add_argument("--out", type=Path, help="file for every visit's figures and the settings, JSON")
    args = parser.parse_args()
    fill_defaults(args)
    return args


def main() -> None:
    args = parse()
    if args.show:
        stored = json.loads(args.show.read_text())
        args.policies, args.orders = stored["policies"], stored["orders"]
        visits = [Visit(**row) for row in stored["visits"]]
    else:
        visits = asyncio.run(measure(args))
    if args.out:
        settings = {key: value for key, value in vars(args).items() if key not in ("out", "show")}
        figures = {"visits": [asdict(visit) for visit in visits]}
        write_json(args.out, {**machine(), "gpus": count_gpus(), **settings, **figures})
    print(table(visits, [(policy, order) for policy in args.policies for order in args.orders]))


if __name__ == "__main__":
    main()
