"""Fits a hardware profile of `leafcutter simulate` to a real engine and holds the simulator against a live run.

    .venv/bin/python -m benchmarks.engine.calibrate --name cpu --out benchmarks/results/calibrate_cpu.json

1. step_sample.py times the steps of an engine in a process of its own; step_fit.py fits the profile, which is printed
   as the line for router/sim/fleet/hardware.py, with its errors over the steps by regime. `--steps FILE` takes steps
   that were sampled before; `--hardware NAME` skips this part and checks a profile that is there.
2. Sessions of live/workload.py, as token ids, are sent through a gateway to one engine that is started as
   `leafcutter up` starts it; and the very same requests, at the same times, go through router.sim with the profile.
   Every latency of both counts. The rate is chosen before anything is sent, so that the simulated engine is busy
   `--load` of the time.

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

from benchmarks.engine.step_fit import Sample, fit, profile_line, residuals
from benchmarks.live.gateway_process import running_gateway
from benchmarks.live.load import replay
from benchmarks.live.session import Session, SessionTraffic, Turn, tokenize
from benchmarks.live.vllm_api import model_name, prefix_cache_counters, reset_prefix_caches
from benchmarks.live.workload import WORKLOADS, add_options, fill_defaults
from benchmarks.report import machine, markdown_table, write_json
from router.config import configure_up
from router.engines import demo_model
from router.engines.launch import Engine, Launch, plan
from router.engines.up import GPU_MODEL, count_gpus, start_all
from router.sim.fleet.hardware import HARDWARE, Hardware
from router.sim.fleet.scenario import FleetSpec, Run
from router.sim.fleet.simulation import simulate as run_simulation

HALVINGS = 12
TRAFFIC = "--groups 20 --prompts 8 --sessions 32"  # of live/workload.py: 160 and about 175 requests

PROBE = SessionTraffic("probe", 1.0, (Session(0.0, (Turn(tuple(range(1000, 1256)), 6),) * 8),))
"""One conversation on an idle engine."""


@dataclass(frozen=True)
class Figures:
    """What one run took, in seconds, and its hit rate in tokens over tokens."""

    requests: int
    mean_s: float
    p50_s: float
    p95_s: float
    ttft_mean_s: float
    hit_rate: float


def figures(latency_s: Sequence[float], ttft_s: Sequence[float], hit_rate: float) -> Figures:
    return Figures(
        requests=len(latency_s),
        mean_s=statistics.fmean(latency_s),
        p50_s=statistics.median(latency_s),
        p95_s=statistics.quantiles(latency_s, n=20)[-1],
        ttft_mean_s=statistics.fmean(ttft_s),
        hit_rate=hit_rate,
    )


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


def simulate(args: argparse.Namespace, traffic: SessionTraffic, slowness: float = 1.0) -> tuple[Figures, float]:
    """The figures, and the share of the time that the engine was busy."""
    cache_tokens = (args.num_gpu_blocks - 1) * args.block_size  # one block is null
    fleet = FleetSpec(1, (args.profile.name,), args.block_size, cache_tokens, slow=((0, slowness),))
    played = run_simulation(Run(traffic, fleet, "round_robin", args.order, args.seed))
    assert not played.failed, "every request fits the engine's cache"
    latency_s, ttft_s = zip(*((s.done_s - s.arrival_s, s.first_s - s.arrival_s) for s in played.served), strict=True)
    hit_rate = sum(s.cached_tokens for s in played.served) / sum(s.prompt_tokens for s in played.served)
    return figures(latency_s, ttft_s, hit_rate), played.busy_s[0] / max(s.done_s for s in played.served)


def at_load(args: argparse.Namespace, traffic: SessionTraffic, slowness: float) -> SessionTraffic:
    """The same sessions, at the rate at which the simulated engine is busy `args.load` of the time."""
    low, high = 0.0, 1.0
    while simulate(args, traffic.at_rate(high), slowness)[1] < args.load:
        low, high = high, 2 * high
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        busy = simulate(args, traffic.at_rate(middle), slowness)[1]
        low, high = (middle, high) if busy < args.load else (low, middle)
    return traffic.at_rate(low)


def plan_engine(args: argparse.Namespace, model: str, folder: Path) -> Launch:
    """One engine, as `leafcutter up` starts it."""
    os.environ["VLLM_SERVER_DEV_MODE"] = "1"  # for /reset_prefix_cache
    config = configure_up(
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
    (only,) = plan(config, model, count_gpus(), args.engine_cores)
    return only


def draw(args: argparse.Namespace, model: str, workload: str, seed: int) -> SessionTraffic:
    """One repetition's sessions."""
    parser = argparse.ArgumentParser(prog="--traffic")
    add_options(parser)
    options = parser.parse_args(["--workload", workload, "--rate", "1", *shlex.split(args.traffic)])
    fill_defaults(options)
    return SessionTraffic(workload, options.rate, tokenize(model, WORKLOADS[workload](options, seed)))


async def measure_slowness(args: argparse.Namespace, engine: str, gateway: str, model: str) -> float:
    """Slowness of the idle engine by the probe, before and behind which its cache is emptied."""
    await reset_prefix_caches([engine])
    took_s = sum(answer.latency_s for answer in await replay(gateway, model, PROBE.sessions, strict=True))
    await reset_prefix_caches([engine])
    expected, _ = simulate(args, PROBE)
    return took_s / (expected.mean_s * expected.requests)


async def compare(args: argparse.Namespace, engine: str, traffic: SessionTraffic, log: Path) -> dict[str, Any]:
    """Live and simulated figures of one replay over an empty cache, through a fresh gateway."""
    model = await model_name(engine)
    async with running_gateway([engine], "--policy", "round_robin", log=log) as (gateway, _):
        await measure_slowness(args, engine, gateway, model)  # what is slow only once
        slowness_before = await measure_slowness(args, engine, gateway, model)
        traffic = at_load(args, traffic, slowness_before)
        before = await prefix_cache_counters([engine])
        answers = await replay(gateway, model, traffic.sessions, strict=True)
        after = await prefix_cache_counters([engine])
        slowness = (slowness_before + await measure_slowness(args, engine, gateway, model)) / 2
    latency_s, ttft_s = [answer.latency_s for answer in answers], [answer.ttft_s for answer in answers]
    simulated, busy = simulate(args, traffic, slowness)
    as_fitted, _ = simulate(args, traffic)
    return {
        "workload": traffic.label,
        "sessions_per_s": traffic.rate,
        "busy": busy,
        "slowness": slowness,
        "live": asdict(figures(latency_s, ttft_s, after.hit_rate_since(before))),
        "simulated": asdict(simulated),
        "as_fitted": asdict(as_fitted),
    }


async def check(args: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    """Live and simulated figures of every workload and repetition."""
    model = args.model or (GPU_MODEL if count_gpus() else str(demo_model.ensure(os.environ)))
    launch, engines, rows = plan_engine(args, model, folder), list[Engine](), []
    try:
        await start_all([launch], engines, timeout_s=900)
        with on_cores(args.client_cores):
            for repetition in range(args.repetitions):
                for workload in args.workloads:
                    traffic = draw(args, model, workload, args.seed + repetition)
                    rows.append(await compare(args, launch.url, traffic, folder / "gateway.log"))
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
        print(fit_table(steps), profile_line(args.profile), sep="\n", file=sys.stderr, flush=True)
    rows = asyncio.run(check(args, folder)) if args.workloads else []
    return {"profile": asdict(args.profile), "steps": steps, "runs": rows}


def main() -> None:
    args = parse()
    if args.show:
        found = json.loads(args.show.read_text())
    else:
        settings = {key: value for key, value in vars(args).items() if key not in ("out", "show", "steps")}
        found = {**machine(), "gpus": count_gpus(), "settings": settings, **measure(args)}
    print(fit_table(found["steps"]), profile_line(Hardware(**found["profile"])), comparison(found["runs"]), sep="\n\n")
    if args.out:
        write_json(args.out, found)


if __name__ == "__main__":
    main()
