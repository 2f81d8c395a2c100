"""What an eviction order costs inside real engines: step time and scheduler time of each order against stock vLLM's.

    .venv/bin/python -m benchmarks.engine.step_time --out benchmarks/results/step_time.json

One process holds one engine per order and steps them in turn, in an order drawn for every step, over the same requests:
step k of every engine does the same work next to the others in time, so that the machine's drift cancels in the ratio
of the two. Intervals are 95 % percentile bootstraps over waves (waves, since neighbouring steps are alike). Name an
order twice to see the noise: `--orders off off rlt`. Scheduling is synchronous, so nothing hides the scheduler's time
behind the model's.

Loads, in waves after which the engines meet again:
- `thrash`: every prompt is new, nothing is ever hit, and each admission evicts from a full cache.
- `chat`: turns of twice as many live conversations as the cache holds, under four system prompts. Orders keep different
  blocks there, so only steps that are equal in tokens and requests are paired, and a wave's time holds the hits' gain.
"""

from __future__ import annotations

import argparse
import os
import random
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.engine.timed_engine import SessionTurn, Step, TimedEngine
from benchmarks.report import machine, markdown_table, write_json
from engine_patches.orders import ORDERS
from engine_patches.settings import OFF
from router.engines import demo_model
from router.engines.up import count_gpus

VOCABULARY = range(100, 30_000)  # ids of ordinary tokens in every model that is likely here
GPU_MEMORY = 0.85
TURNS = (3, 6)
RESAMPLES = 1000

Row = list[Step | None]
"""Step k of a wave in every engine; None where an engine had finished the wave before."""


def draw(rng: random.Random, tokens: int) -> list[int]:
    return rng.choices(VOCABULARY, k=tokens)


def around(rng: random.Random, mean: int) -> int:
    """Uniform over half to one and a half of `mean`."""
    return rng.randint(max(1, mean // 2), max(1, mean + mean // 2))


def thrash(args: argparse.Namespace, rng: random.Random) -> Iterator[list[SessionTurn]]:
    """Waves of prompts that are all new."""
    while True:
        yield [
            SessionTurn(number, draw(rng, around(rng, args.prompt_tokens)), around(rng, args.output_tokens), last=True)
            for number in range(args.wave)
        ]


def chat(args: argparse.Namespace, rng: random.Random) -> Iterator[list[SessionTurn]]:
    """Waves of next turns of random sessions.

    A turn has a quarter of the prompt length in the mean; before the first one stands a system prompt of half of it.
    """
    systems = [draw(rng, args.prompt_tokens // 2) for _ in range(4)]
    turns = sum(TURNS) / 2
    mean_tokens = args.prompt_tokens * (0.5 + turns / 8) + args.output_tokens * turns / 2  # half way through
    live = max(args.wave, round(2 * args.blocks * args.block_size / mean_tokens))
    turns_left: dict[int, int] = {}  # of each live session; negative: it has not begun
    created = 0
    while True:
        while len(turns_left) < live:
            turns_left[created] = -rng.randint(*TURNS)
            created += 1
        wave = []
        for session in rng.sample(sorted(turns_left), args.wave):
            opening = rng.choice(systems) if turns_left[session] < 0 else []
            turns_left[session] = abs(turns_left[session]) - 1
            tokens = opening + draw(rng, around(rng, args.prompt_tokens // 4))
            wave.append(SessionTurn(session, tokens, around(rng, args.output_tokens), last=not turns_left[session]))
            if not turns_left[session]:
                del turns_left[session]
        yield wave


LOADS: Mapping[str, Callable[[argparse.Namespace, random.Random], Iterator[list[SessionTurn]]]] = {
    "thrash": thrash,
    "chat": chat,
}


def longest(args: argparse.Namespace) -> int:
    """The tokens of the longest conversation that a load can make."""
    chat_turns = TURNS[1] * (args.prompt_tokens * 3 // 8 + args.output_tokens * 3 // 2 + 1)
    tokens: int = max((args.prompt_tokens + args.output_tokens) * 3 // 2, args.prompt_tokens // 2 + chat_turns) + 1
    return tokens


def serve(engines: Sequence[TimedEngine], wave: Sequence[SessionTurn], rng: random.Random) -> list[Row]:
    """Run one wave to its end in every engine."""
    for engine in engines:
        engine.enqueue(wave)
    rows = []
    while any(engine.busy for engine in engines):
        row: Row = [None] * len(engines)
        for index in rng.sample(range(len(engines)), len(engines)):
            if engines[index].busy:
                row[index] = engines[index].step()
        rows.append(row)
    return rows


def measure(args: argparse.Namespace, load: str, engines: Sequence[TimedEngine]) -> list[dict[str, Any]]:
    """Every order's figures under one load, once every engine has evicted a whole cache of blocks."""
    rng = random.Random(args.seed)
    upcoming = LOADS[load](args, rng)
    for engine in engines:
        engine.reset()
    warm_up = 0
    while min(engine.evicted_blocks for engine in engines) < args.blocks:
        serve(engines, next(upcoming), rng)
        warm_up += 1
    before = [(engine.evicted_blocks, engine.prompt_tokens, engine.cached_tokens) for engine in engines]
    waves: list[list[Row]] = []
    while sum(map(len, waves)) < args.steps:
        waves.append(serve(engines, next(upcoming), rng))
        _progress(f"{load}: {sum(map(len, waves))} of {args.steps} steps after {warm_up} waves of warm-up")
    _progress(None)
    rows = []
    for index, (engine, (evicted, prompt, cached)) in enumerate(zip(engines, before, strict=True)):
        figures = compare(waves, index, np.random.default_rng(args.seed))
        hit_rate = (engine.cached_tokens - cached) / (engine.prompt_tokens - prompt)
        rows.append(
            {
                "load": load,
                "order": args.orders[index],
                "steps": sum(row[index] is not None for wave in waves for row in wave),
                "evicted_blocks": engine.evicted_blocks - evicted,
                "hit_rate": hit_rate,
                **figures,
            }
        )
    return rows


def compare(waves: Sequence[Sequence[Row]], index: int, rng: np.random.Generator) -> dict[str, Any]:
    """One engine against the first: medians, in seconds, and [median, low, high] of what is paired."""
    own = [step for wave in waves for row in wave if (step := row[index])]
    paired = [[pair for row in wave if (pair := _pair(row, index))] for wave in waves]
    admitting = [[pair for pair in wave if pair[1].admits] for wave in paired]
    if not any(admitting):
        raise SystemExit("no step that computes a prompt was the same in two engines: raise --steps")
    return {
        "step_s": float(np.median([step.seconds for step in own])),
        "step_admitting_s": float(np.median([step.seconds for step in own if step.admits])),
        "scheduler_s": float(np.median([step.scheduler_s for step in own])),
        "scheduler_admitting_s": float(np.median([step.scheduler_s for step in own if step.admits])),
        "paired_steps": sum(map(len, paired)),
        "paired_admitting_steps": sum(map(len, admitting)),
        "step_ratio": bootstrap([[ours.seconds / base.seconds for base, ours in wave] for wave in paired], rng),
        "step_admitting_ratio": bootstrap(
            [[ours.seconds / base.seconds for base, ours in wave] for wave in admitting], rng
        ),
        "added_share": bootstrap(
            [[(ours.scheduler_s - base.scheduler_s) / base.seconds for base, ours in wave] for wave in admitting], rng
        ),
        "wave_ratio": bootstrap([[_seconds(wave, index) / _seconds(wave, 0)] for wave in waves], rng),
    }


def _pair(row: Row, index: int) -> tuple[Step, Step] | None:
    """The first engine's step and this one's, if they did the same work."""
    base, ours = row[0], row[index]
    if base and ours and (base.tokens, base.requests) == (ours.tokens, ours.requests):
        return base, ours
    return None


def _seconds(wave: Sequence[Row], index: int) -> float:
    return sum(step.seconds for row in wave if (step := row[index]))


def bootstrap(waves: Sequence[Sequence[float]], rng: np.random.Generator) -> list[float]:
    """Median over all values, and the 2.5 and 97.5 % points of it over resampled waves."""
    arrays = [np.asarray(wave) for wave in waves if wave]
    found = [
        np.median(np.concatenate([arrays[pick] for pick in rng.integers(len(arrays), size=len(arrays))]))
        for _ in range(RESAMPLES)
    ]
    return [float(np.median(np.concatenate(arrays))), *map(float, np.percentile(found, [2.5, 97.5]))]


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Markdown. `admitting`: steps that compute a prompt; `added`: their extra scheduler time over the base's step."""
    heads = (
        "load",
        "order",
        "step ms",
        "ratio [95 %]",
        "admitting step ms",
        "ratio [95 %]",
        "scheduler us",
        "admitting",
        "added, share of step [95 %]",
        "wave, ratio [95 %]",
        "blocks evicted",
        "hit rate",
        "paired steps",
    )
    lines: list[Sequence[str]] = []
    for row in rows:
        added = "{:+.2%} [{:+.2%}, {:+.2%}]".format(*row["added_share"])
        cells = (
            row["load"],
            row["order"],
            f"{row['step_s'] * 1e3:.2f}",
            _interval(row["step_ratio"]),
            f"{row['step_admitting_s'] * 1e3:.2f}",
            _interval(row["step_admitting_ratio"]),
            f"{row['scheduler_s'] * 1e6:.0f}",
            f"{row['scheduler_admitting_s'] * 1e6:.0f}",
            added,
            _interval(row["wave_ratio"]),
            str(row["evicted_blocks"]),
            f"{row['hit_rate']:.3f}",
            f"{row['paired_steps']} of {row['steps']}, {row['paired_admitting_steps']} admitting",
        )
        lines.append(cells)
    return markdown_table(heads, lines)


def _interval(values: Sequence[float]) -> str:
    return "{:.3f} [{:.3f}-{:.3f}]".format(*values)


def _progress(text: str | None) -> None:
    """Rewrite one line on a terminal; None ends it."""
    if sys.stderr.isatty():
        print("" if text is None else f"\r{text}", end="\n" if text is None else "", file=sys.stderr, flush=True)


def engine_args(args: argparse.Namespace) -> list[str]:
    """The engines' command line: what `leafcutter up` uses, in a process of its own."""
    served_model = args.model or str(demo_model.ensure(os.environ))
    if Path(served_model).is_dir():
        os.environ["HF_HUB_OFFLINE"] = "1"
    flags = ["--model", served_model, "--max-model-len", str(longest(args)), "--no-async-scheduling"]
    flags += ["--num-gpu-blocks-override", str(args.blocks), "--block-size", str(args.block_size)]
    if count_gpus():
        flags += ["--gpu-memory-utilization", f"{GPU_MEMORY / len(args.orders):.3f}"]
    else:
        flags += ["--enforce-eager"]
    return flags + shlex.split(args.engine_args)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument(
        "--orders", nargs="+", default=[OFF, "rlt_gix"], choices=[OFF, *ORDERS], help="the first is the base"
    )
    parser.add_argument("--loads", nargs="+", default=list(LOADS), choices=LOADS)
    parser.add_argument("--steps", type=int, default=1200, help="counted for each load, warm-up not among them")
    parser.add_argument("--blocks", type=int, default=256, help="blocks of each engine's cache")
    parser.add_argument("--block-size", type=int, default=32)
    parser.add_argument("--prompt-tokens", type=int, default=512, help="mean of a prompt (thrash)")
    parser.add_argument("--output-tokens", type=int, default=4, help="mean of an answer")
    parser.add_argument("--concurrency", type=int, default=4, help="requests at a time")
    parser.add_argument("--wave", type=int, default=12, help="requests of a wave")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--model", help="a hub name or a folder; nothing: SmolLM2-135M-Instruct")
    parser.add_argument("--engine-args", default="", help="more arguments for every engine, in one string")
    parser.add_argument("--out", type=Path, help="file for the figures and the settings, JSON")
    return parser.parse_args()


def main() -> None:
    args = parse()
    flags = engine_args(args)
    engines = [TimedEngine(order, args.seed, args.concurrency, flags) for order in args.orders]
    rows = [row for load in args.loads for row in measure(args, load, engines)]
    print(table(rows))
    if args.out:
        settings = {key: value for key, value in vars(args).items() if key != "out"}
        write_json(args.out, {**machine(), "gpus": count_gpus(), **settings, "rows": rows})


if __name__ == "__main__":
    main()
