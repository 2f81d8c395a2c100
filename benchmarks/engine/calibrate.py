"""Fits a hardware profile of `leafcutter simulate` to a real engine and holds the simulator against a live run.

    .venv/bin/python -m benchmarks.engine.calibrate --name cpu --out benchmarks/results/calibrate_cpu.json

1. step_sample.py times the steps of an engine in a process of its own; step_fit.py fits the profile, which is printed
   as the line for router/sim/hardware.py, with its errors over the steps by regime. `--steps FILE` takes steps that
   were sampled before; `--hardware NAME` skips this part and checks a profile that is there.
2. Requests of workload.py, as token ids, are sent to one engine that is started as `leafcutter up` does it, through a
   gateway; and the very same requests, at the same times, go through router.sim with the profile. Every latency of both
   counts. The rate is chosen before anything is sent: the simulated engine is busy `--load` of the time.

Nothing of 2 goes into the fit. A shared machine is not always equally fast: a fixed probe, eight requests one after the
other on the idle engine before and behind each replay, tells the slowness f of that time over the profile's, gateway
and API server included. The simulation is shown at this f and as fitted (f = 1); the rate suits the f before. On a CPU
the engine computes on `--engine-cores` (all but the first), and the first is left to gateway, client and API server.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import shlex
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import httpx

from benchmarks.engine.step_fit import Sample, fit, line, residuals
from benchmarks.live.gateway_process import gateway
from benchmarks.live.live_ab import counters
from benchmarks.live.talk import Taken, Talk, Talks, Turn, converse_all, tokenise
from benchmarks.live.workload import WORKLOADS, add_options, fill_defaults
from benchmarks.report import markdown_table
from router.config import UpConfig
from router.engines import demo_model as model
from router.engines.launch import Engine, Launch, plan
from router.engines.up import GPU_MODEL, count_gpus, start_all
from router.sim.fleet.hardware import HARDWARE, Hardware
from router.sim.fleet.play import play
from router.sim.fleet.scenario import FleetSpec, Run

HALVINGS = 12
TRAFFIC = "--groups 20 --prompts 8 --sessions 32"  # of workload.py: 160 and about 175 requests

PROBE = Talks("probe", 1.0, (Talk(0.0, (Turn(tuple(range(1000, 1256)), 6, 0.0),) * 8),))
"""One conversation on an idle engine."""


@dataclass(frozen=True)
class Figures:
    """Of one run; seconds."""

    requests: int
    mean_s: float
    p50_s: float
    p95_s: float
    ttft_mean_s: float
    hit_rate: float


def figures(taken: Sequence[Taken], hit_rate: float) -> Figures:
    latency = [each.latency_s for each in taken]
    cuts = statistics.quantiles(latency, n=20)
    ttft_s = statistics.fmean(each.ttft_s for each in taken)
    return Figures(len(taken), statistics.fmean(latency), statistics.median(latency), cuts[-1], ttft_s, hit_rate)


@contextmanager
def on_cores(cores: Sequence[int]) -> Iterator[None]:
    """What is started meanwhile inherits these cores."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def sample_steps(args: argparse.Namespace, folder: Path) -> list[Sample]:
    """The steps of `--steps`, or those of an engine that runs for this in a process of its own."""
    file = args.steps or folder / "steps.json"
    if not args.steps:
        command = [sys.executable, "-m", "benchmarks.engine.step_sample", "--out", str(file), "--seed", str(args.seed)]
        command += ["--block-size", str(args.block_size), "--budget-tokens", str(args.budget_tokens)]
        command += ["--model", args.model] if args.model else []
        command += [f"--engine-args={args.engine_args}"]
        cores = ",".join(map(str, args.engine_cores))
        env = {"VLLM_CPU_OMP_THREADS_BIND": cores, "OMP_NUM_THREADS": str(len(args.engine_cores))}
        subprocess.run(command, env={**os.environ, **env}, check=True)
    return [Sample(**sample) for sample in json.loads(file.read_text())]


def simulate(args: argparse.Namespace, talks: Talks, slowness: float = 1.0) -> tuple[Figures, float]:
    """The figures, and the share of the time that the engine was busy."""
    cache_tokens = (args.num_gpu_blocks - 1) * args.block_size  # one block is null
    fleet = FleetSpec(1, (args.profile.name,), args.block_size, cache_tokens, slow=((0, slowness),))
    played = play(Run(talks, fleet, "round_robin", args.order, args.seed))
    assert not played.failed, "every request fits the engine's cache"
    taken = [Taken(s.done_s - s.arrival_s, s.first_s - s.arrival_s) for s in played.served]
    hit_rate = sum(s.cached_tokens for s in played.served) / sum(s.prompt_tokens for s in played.served)
    return figures(taken, hit_rate), played.busy_s[0] / max(s.done_s for s in played.served)


def paced(args: argparse.Namespace, talks: Talks, slowness: float) -> Talks:
    """The same sessions, at the rate at which the simulated engine is busy `args.load` of the time."""
    low, high = 0.0, 1.0
    while simulate(args, talks.paced(high), slowness)[1] < args.load:
        low, high = high, 2 * high
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        busy = simulate(args, talks.paced(middle), slowness)[1]
        low, high = (middle, high) if busy < args.load else (low, middle)
    return talks.paced(low)


def launch(args: argparse.Namespace, served: str, folder: Path) -> Launch:
    """One engine, as `leafcutter up` starts it."""
    os.environ["VLLM_SERVER_DEV_MODE"] = "1"  # for /reset_prefix_cache
    config = UpConfig(
        engines=1,
        eviction=args.order,
        eviction_seed=args.seed,
        engine_port=args.engine_port,
        num_gpu_blocks=args.num_gpu_blocks,
        block_size=args.block_size,
        max_model_len=args.max_model_len,
        log_dir=str(folder),
        engine_args=("--max-num-batched-tokens", str(args.budget_tokens), *args.engine_args.split()),
    )
    (only,) = plan(config, served, count_gpus(), args.engine_cores)
    return only


def draw(args: argparse.Namespace, served: str, workload: str, seed: int) -> Talks:
    """One repetition's sessions."""
    parser = argparse.ArgumentParser(prog="--traffic")
    add_options(parser)
    options = parser.parse_args(["--workload", workload, "--rate", "1", *shlex.split(args.traffic)])
    fill_defaults(options)
    return Talks(workload, options.rate, tokenise(served, WORKLOADS[workload](options, seed)))


async def compare(args: argparse.Namespace, started: Launch, talks: Talks, log: Path) -> dict[str, Any]:
    """Live and simulated figures of one replay over an empty cache, through a fresh gateway."""
    async with httpx.AsyncClient(timeout=30) as client:
        name = (await client.get(f"{started.url}/v1/models")).json()["data"][0]["id"]
        async with gateway([started.url], "--policy", "round_robin", log=log) as (url, _):

            async def slowness() -> float:
                """Of the idle engine, by the probe; what is cached is dropped before and behind it."""
                (await client.post(f"{started.url}/reset_prefix_cache")).raise_for_status()
                took_s = sum(taken.latency_s for taken in await converse_all(url, name, PROBE.talks))
                (await client.post(f"{started.url}/reset_prefix_cache")).raise_for_status()
                expected, _ = simulate(args, PROBE)
                return took_s / (expected.mean_s * expected.requests)

            await slowness()  # what is slow only once
            first = await slowness()
            talks = paced(args, talks, first)
            before = await counters([started])
            taken = await converse_all(url, name, talks.talks)
            after = await counters([started])
            found = figures(taken, (after[1] - before[1]) / (after[0] - before[0]))
            slow = (first + await slowness()) / 2
    simulated, busy = simulate(args, talks, slow)
    as_fitted, _ = simulate(args, talks)
    return {
        "workload": talks.label,
        "sessions_per_s": talks.rate,
        "busy": busy,
        "slowness": slow,
        "live": asdict(found),
        "simulated": asdict(simulated),
        "as_fitted": asdict(as_fitted),
    }


async def check(args: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    """Live and simulated figures of every workload and repetition."""
    served = args.model or (GPU_MODEL if count_gpus() else str(model.ensure(os.environ)))
    started, engines, rows = launch(args, served, folder), list[Engine](), []
    try:
        await start_all([started], engines, timeout_s=900)
        with on_cores(args.client_cores):
            for repetition in range(args.repetitions):
                for workload in args.workloads:
                    talks = draw(args, served, workload, args.seed + repetition)
                    rows.append(await compare(args, started, talks, folder / "gateway.log"))
                    print(comparison(rows[-1:]), file=sys.stderr, flush=True)
    finally:
        await asyncio.gather(*(engine.stop() for engine in engines))
    return rows


def fit_table(rows: Sequence[dict[str, Any]]) -> str:
    """The profile's relative errors over the steps it was fitted to."""
    heads = ["steps", "number", "median ms", "median error", "median size", "90 % size", "whole time"]
    lines: list[list[str]] = []
    for row in rows:
        errors = [
            f"{row[key]:+.1%}" if key in ("error_median", "time_error") else f"{row[key]:.1%}"
            for key in ("error_median", "error_size_median", "error_size_p90", "time_error")
        ]
        lines.append([row["regime"], str(row["steps"]), f"{row['median_ms']:.1f}", *errors])
    return markdown_table(heads, lines)


def comparison(rows: Sequence[dict[str, Any]]) -> str:
    """Live figures, seconds, and the simulator's with their ratio to them: at the measured slowness, and as fitted."""
    columns = {"mean": "mean_s", "P50": "p50_s", "P95": "p95_s", "TTFT mean": "ttft_mean_s", "hit rate": "hit_rate"}
    lines: list[list[str]] = []
    for row in rows:
        about = [row["workload"], str(row["live"]["requests"]), f"{row['busy']:.0%}"]
        lines.append([*about, "live", *(f"{row['live'][key]:.3f}" for key in columns.values())])
        for run, slowness in (("simulated", row["slowness"]), ("as_fitted", 1.0)):
            cells = [f"{row[run][key]:.3f} ({row[run][key] / row['live'][key]:.2f})" for key in columns.values()]
            lines.append(["", "", "", f"simulated, f = {slowness:.2f}", *cells])
    return markdown_table(["workload", "requests", "busy", "run", *columns], lines)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--name", default="fitted", help="of the profile")
    parser.add_argument("--steps", type=Path, help="steps of an earlier step_sample.py, instead of new ones")
    parser.add_argument("--hardware", choices=HARDWARE, help="check this profile instead of fitting one")
    parser.add_argument("--cache-tokens", type=int, default=40_000, help="of the profile; any simulation may choose")
    parser.add_argument("--workloads", nargs="*", default=list(WORKLOADS), choices=WORKLOADS, help="none: only fit")
    parser.add_argument("--traffic", default=TRAFFIC, help="options of the workloads (live_ab.py), in one string")
    parser.add_argument("--repetitions", type=int, default=1)
    parser.add_argument("--load", type=float, default=0.65, help="share of the time that the engine is busy")
    parser.add_argument("--order", default="lru", help="eviction order of the engine and of its simulation")
    parser.add_argument("--num-gpu-blocks", type=int, default=256)
    parser.add_argument("--block-size", type=int, default=32)
    parser.add_argument("--budget-tokens", type=int, default=2048, help="max_num_batched_tokens")
    parser.add_argument("--max-model-len", type=int, default=4096)
    cores = sorted(os.sched_getaffinity(0))
    parser.add_argument("--engine-cores", type=int, nargs="+", default=cores[1:] or cores)
    parser.add_argument("--engine-port", type=int, default=18300)
    parser.add_argument("--engine-args", default="", help="more arguments for the engine, in one string")
    parser.add_argument("--model", help="a hub name or a folder; nothing: what `leafcutter up` serves")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--show", type=Path, metavar="FILE", help="measure nothing: print the tables of a file of --out"
    )
    parser.add_argument("--out", "--json", type=Path, help="file for all figures and the settings, JSON")
    args = parser.parse_args()
    args.client_cores = sorted(set(cores) - set(args.engine_cores)) or cores
    return args


def measure(args: argparse.Namespace) -> dict[str, Any]:
    folder = Path(tempfile.mkdtemp(prefix="calibrate-"))
    print(f"logs in {folder}", file=sys.stderr)
    steps: list[dict[str, Any]] = []
    if args.hardware:
        args.profile = HARDWARE[args.hardware]
    else:
        samples = sample_steps(args, folder)
        args.profile = fit(samples, args.name, args.budget_tokens, args.cache_tokens)
        steps = residuals(samples, args.profile)
        HARDWARE[args.profile.name] = args.profile
        print(fit_table(steps), line(args.profile), sep="\n", file=sys.stderr, flush=True)
    rows = asyncio.run(check(args, folder)) if args.workloads else []
    return {"profile": asdict(args.profile), "steps": steps, "runs": rows}


def main() -> None:
    args = parse()
    if args.show:
        found = json.loads(args.show.read_text())
    else:
        settings = {key: value for key, value in vars(args).items() if key not in ("out", "show", "steps")}
        machine = {"machine": platform.processor() or platform.machine(), "gpus": count_gpus(), "settings": settings}
        found = {**machine, **measure(args)}
    print(fit_table(found["steps"]), line(Hardware(**found["profile"])), comparison(found["runs"]), sep="\n\n")
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
