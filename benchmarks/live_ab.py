"""Routing policies x eviction orders on real engines, in one run: the paper's shared-prefix workload, scaled down.

    .venv/bin/python benchmarks/live_ab.py --out benchmarks/results/live_ab.json

For every order the same number of engines runs all the time (those not measured are idle), so that cells can be
interleaved without restarts: each repetition visits every cell once, in an order of its own, over the very same
requests. Before each visit the engines' caches are emptied and a fresh gateway starts, which learns from nothing; the
first `--warm-up` share of a visit is not counted in latencies.

Workload (GSP, section 5 of arXiv 2601.18999): groups of prompts that share their first half, in random order, with
Poisson arrivals. Hit rate is vLLM's own: prefix_cache_hits / prefix_cache_queries over the visit.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import httpx
from gateway import gateway

from router import model
from router.config import POLICIES, UpConfig
from router.probe import samples
from router.supervisor import Engine, Launch, plan
from router.up import GPU_MODEL, count_gpus, start_all

SYLLABLES = [a + b + c for a in "bdfgklmnprst" for b in "aeiou" for c in ("n", "r", "l", "s")]


@dataclass(frozen=True)
class Request:
    at_s: float
    prompt: str


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


def words(rng: random.Random, count: int) -> str:
    return " ".join(rng.choice(SYLLABLES) + rng.choice(SYLLABLES) for _ in range(count))


def workload(args: argparse.Namespace, seed: int) -> list[Request]:
    """`groups` x `prompts` requests in random order; lengths are in words, drawn per group."""
    rng = random.Random(seed)
    prompts = []
    for _ in range(args.groups):
        length = rng.choice(args.lengths)
        shared = words(rng, length // 2)
        prompts += [f"{shared} {words(rng, length - length // 2)}" for _ in range(args.prompts)]
    rng.shuffle(prompts)
    at_s, requests = 0.0, []
    for prompt in prompts:
        at_s += rng.expovariate(args.rate)
        requests.append(Request(at_s, prompt))
    return requests


async def send(client: httpx.AsyncClient, url: str, name: str, request: Request, tokens: int) -> dict[str, Any]:
    """One streamed request: its latency and TTFT in seconds, and the engine that served it."""
    body = {"model": name, "prompt": request.prompt, "max_tokens": tokens, "ignore_eos": True, "stream": True}
    start, first = time.perf_counter(), None
    try:
        async with client.stream("POST", f"{url}/v1/completions", json={**body, "temperature": 0}) as answer:
            answer.raise_for_status()
            async for _ in answer.aiter_bytes():
                first = first or time.perf_counter() - start
            engine = answer.headers["x-leafcutter-engine"]
    except httpx.HTTPError as error:
        return {"error": repr(error)}
    assert first is not None
    return {"latency_s": time.perf_counter() - start, "ttft_s": first, "engine": engine}


async def replay(url: str, name: str, requests: Sequence[Request], tokens: int) -> list[dict[str, Any]]:
    """Sends every request at its time, whatever became of the others (an open loop)."""
    start = time.perf_counter()
    async with httpx.AsyncClient(timeout=600, limits=httpx.Limits(max_connections=None)) as client:

        async def one(request: Request) -> dict[str, Any]:
            await asyncio.sleep(max(0.0, request.at_s - (time.perf_counter() - start)))
            return await send(client, url, name, request, tokens)

        return await asyncio.gather(*(one(request) for request in requests))


async def counters(launches: Sequence[Launch]) -> tuple[float, float]:
    """Prefix-cache queries and hits of these engines so far, tokens."""
    queries = hits = 0.0
    async with httpx.AsyncClient(timeout=10) as client:
        for launch in launches:
            page = samples((await client.get(f"{launch.url}/metrics")).text, "vllm:prefix_cache_")
            queries += page["vllm:prefix_cache_queries_total"][1]
            hits += page["vllm:prefix_cache_hits_total"][1]
    return queries, hits


async def visit(
    args: argparse.Namespace, policy: str, order: str, launches: Sequence[Launch], repetition: int, log: Path
) -> Visit:
    """One cell, once: empty caches, a fresh gateway, the repetition's requests."""
    requests = workload(args, args.seed + repetition)
    async with httpx.AsyncClient(timeout=30) as client:
        for launch in launches:
            (await client.post(f"{launch.url}/reset_prefix_cache")).raise_for_status()
        name = (await client.get(f"{launches[0].url}/v1/models")).json()["data"][0]["id"]
    before = await counters(launches)
    async with gateway([launch.url for launch in launches], "--policy", policy, "--seed", "1", log=log) as (url, _):
        answers = await replay(url, name, requests, args.tokens)
    after = await counters(launches)
    good = [answer for answer in answers if "error" not in answer]
    counted = [answer for answer in answers[int(args.warm_up * len(answers)) :] if "error" not in answer]
    latency, ttft = ([answer[key] for answer in counted] for key in ("latency_s", "ttft_s"))
    served = [answer["engine"] for answer in good]
    return Visit(
        policy=policy,
        order=order,
        repetition=repetition,
        requests=len(answers),
        failed=len(answers) - len(good),
        hit_rate=(after[1] - before[1]) / (after[0] - before[0]),
        mean_s=statistics.fmean(latency),
        p95_s=statistics.quantiles(latency, n=20)[-1],
        ttft_mean_s=statistics.fmean(ttft),
        ttft_p95_s=statistics.quantiles(ttft, n=20)[-1],
        share_max=max(served.count(engine) for engine in set(served)) / len(served),
    )


def start_plan(args: argparse.Namespace, folder: Path) -> dict[str, list[Launch]]:
    """The engines of every order: `--engines` each, all on this machine at once."""
    gpus = count_gpus()
    cores = sorted(os.sched_getaffinity(0))
    served = args.model or (GPU_MODEL if gpus else str(model.ensure(os.environ)))
    os.environ["VLLM_SERVER_DEV_MODE"] = "1"  # for /reset_prefix_cache
    fleets = {}
    for number, order in enumerate(args.orders):
        config = UpConfig(
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
        fleets[order] = plan(config, served, gpus, cores)
    return fleets


async def measure(args: argparse.Namespace) -> list[Visit]:
    folder = Path(tempfile.mkdtemp(prefix="live_ab-"))
    print(f"logs in {folder}", file=sys.stderr)
    fleets = start_plan(args, folder)
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
    heads = ("hit rate", "mean s", "P95 s", "TTFT mean s", "TTFT P95 s", "mean, ratio", "P95, ratio")
    lines = ["| policy + order | " + " | ".join(heads) + " |", "|---" * (1 + len(heads)) + "|"]
    by_cell = {
        cell: sorted((v for v in visits if (v.policy, v.order) == cell), key=lambda v: v.repetition) for cell in cells
    }
    for cell, mine in by_cell.items():
        shown = [_spread([getattr(visit, column) for visit in mine], 3) for column in columns]
        for column in ("mean_s", "p95_s"):
            pairs = zip(mine, by_cell[cells[0]], strict=True)
            shown.append(_spread([getattr(visit, column) / getattr(base, column) for visit, base in pairs], 2))
        lines.append(f"| {cell[0]} + {cell[1]} | " + " | ".join(shown) + " |")
    return "\n".join(lines)


def _spread(values: Sequence[float], digits: int) -> str:
    return f"{statistics.median(values):.{digits}f} [{min(values):.{digits}f}-{max(values):.{digits}f}]"


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--policies", nargs="+", default=["round_robin", "lbgr"], choices=POLICIES)
    parser.add_argument("--orders", nargs="+", default=["lru", "rlt"])
    parser.add_argument("--engines", type=int, default=2, help="engines of each order")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--groups", type=int, default=32)
    parser.add_argument("--prompts", type=int, default=8, help="prompts of each group")
    parser.add_argument("--lengths", type=int, nargs="+", default=[96, 192, 384], help="words (about 2.6 tokens each)")
    parser.add_argument("--tokens", type=int, default=4, help="output tokens of each request")
    parser.add_argument("--rate", type=float, default=2.0, help="requests a second")
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
    return parser.parse_args()


def main() -> None:
    args = parse()
    if args.show:
        stored = json.loads(args.show.read_text())
        args.policies, args.orders = stored["policies"], stored["orders"]
        visits = [Visit(**visit) for visit in stored["visits"]]
    else:
        visits = asyncio.run(measure(args))
    if args.out:
        settings = {key: value for key, value in vars(args).items() if key not in ("out", "show")}
        machine = {"machine": platform.processor() or platform.machine(), "cores": os.cpu_count(), "gpus": count_gpus()}
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps({**machine, **settings, "visits": [asdict(v) for v in visits]}, indent=1) + "\n")
    print(table(visits, [(policy, order) for policy in args.policies for order in args.orders]))


if __name__ == "__main__":
    main()
