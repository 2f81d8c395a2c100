"""Steps of a real engine, each with what it did and how long it took, for calibrate.py to fit.

    .venv/bin/python -m benchmarks.engine.step_sample --out steps.json

The engine's core runs inside this process and is stepped by hand (timed_engine.py), its worker in a process of its own
where that is how a server has it. Scheduling is synchronous, as in a server on CPUs; one on a GPU hides some of it.

Waves of requests in random order: prompts alone, new ones and such behind a cached beginning; several prompts at once;
batches that decode together at several contexts; and a number of requests at a time, each followed by another, in which
prompts and decoding mix.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from benchmarks.engine.step_fit import Sample
from benchmarks.engine.step_time import draw
from benchmarks.engine.timed_engine import SessionTurn, TimedEngine
from engine_patches.settings import OFF
from router.engines import demo_model
from router.engines.up import GPU_MODEL, count_gpus

PROMPTS = (8, 16, 32, 64, 128, 256, 512, 1024, 2048, 3072)
HEADS = (512, 1024, 2048)  # tokens cached before a prompt
BEHIND = (16, 64, 256, 1024)
AT_ONCE = (2, 4, 8, 16)
BATCHES = (1, 2, 4, 8, 16)
CONTEXTS = (32, 256, 1024)
DECODED = 24  # tokens
LEVELS = (2, 4, 8)  # requests at a time
MIXED = 40  # requests
LONGEST = 4096  # tokens of prompt and answer

Wave = tuple[int, list[SessionTurn]]
"""Requests at a time, and the requests."""


class SampledEngine(TimedEngine):
    """An engine that tells what each step did."""

    def serve(self, concurrency: int, wave: Sequence[SessionTurn]) -> list[Sample]:
        """Run the wave to its end and return every step."""
        self._concurrency = concurrency
        self.enqueue(wave)
        samples = []
        while self.busy:
            seconds = self.step().seconds
            if self._scheduled.total_num_scheduled_tokens:
                samples.append(self._sample(seconds))
        return samples

    def _sample(self, seconds: float) -> Sample:
        new, old = self._scheduled.scheduled_new_reqs, self._scheduled.scheduled_cached_reqs
        begun = zip(old.req_ids, old.num_computed_tokens, old.num_output_tokens, strict=True)
        parts = [(each.req_id, each.num_computed_tokens, 0) for each in new] + list(begun)
        prompt, lookback, decoding, context = 0, 0.0, 0, 0
        for request, computed, answered in parts:
            if answered:
                decoding, context = decoding + 1, context + computed
            else:
                chunk = self._scheduled.num_scheduled_tokens[request]
                prompt, lookback = prompt + chunk, lookback + chunk * (computed + chunk / 2)
        return Sample(seconds, prompt, lookback, len(parts), decoding, context)


def draw_waves(rng: random.Random) -> list[Wave]:
    """All waves, in random order."""

    def wave(concurrency: int, prompts: Sequence[list[int]], answers: Sequence[int]) -> Wave:
        turns = enumerate(zip(prompts, answers, strict=True))
        return concurrency, [SessionTurn(number, tokens, answer, last=True) for number, (tokens, answer) in turns]

    heads = {length: draw(rng, length) for length in HEADS}
    all_waves = [wave(1, [draw(rng, tokens)], [1]) for tokens in PROMPTS for _ in range(3)]
    all_waves += [wave(1, [head + draw(rng, more)], [1]) for head in heads.values() for more in BEHIND]
    all_waves += [wave(n, [draw(rng, tokens) for _ in range(n)], [1] * n) for n in AT_ONCE for tokens in (16, 64, 128)]
    all_waves += [wave(n, [draw(rng, tokens) for _ in range(n)], [DECODED] * n) for n in BATCHES for tokens in CONTEXTS]
    for level in LEVELS:
        prompts = [rng.choice(list(heads.values())) if rng.random() < 0.5 else [] for _ in range(MIXED)]
        fresh = [draw(rng, round(2 ** rng.uniform(4, 9))) for _ in range(MIXED)]
        answers = [rng.randint(1, 2 * DECODED) for _ in range(MIXED)]
        all_waves.append(wave(level, [head + tail for head, tail in zip(prompts, fresh, strict=True)], answers))
    rng.shuffle(all_waves)
    return all_waves


def engine_args(args: argparse.Namespace) -> list[str]:
    """The command line of a server that `leafcutter up` starts, as far as it concerns the steps."""
    gpus = count_gpus()
    served_model = args.model or (GPU_MODEL if gpus else str(demo_model.ensure(os.environ)))
    if Path(served_model).is_dir():
        os.environ["HF_HUB_OFFLINE"] = "1"
    flags = ["--model", served_model, "--max-model-len", str(LONGEST + 1), "--no-async-scheduling"]
    flags += ["--block-size", str(args.block_size), "--num-gpu-blocks-override", str(args.blocks)]
    flags += ["--max-num-batched-tokens", str(args.budget_tokens)]
    # In a server a CPU engine's worker is a process of its own, with the allocator and threads that suit it.
    flags += [] if gpus else ["--enforce-eager", "--distributed-executor-backend", "mp"]
    return flags + shlex.split(args.engine_args)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="file for the samples, JSON")
    parser.add_argument("--blocks", type=int, default=1024)
    parser.add_argument("--block-size", type=int, default=32)
    parser.add_argument("--budget-tokens", type=int, default=2048, help="max_num_batched_tokens")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--model", help="a hub name or a folder; nothing: what `leafcutter up` serves")
    parser.add_argument("--engine-args", default="", help="more arguments for the engine, in one string")
    return parser.parse_args()


def main() -> None:
    args = parse()
    rng = random.Random(args.seed)
    engine = SampledEngine(OFF, args.seed, 1, engine_args(args))
    for tokens in (64, 1024, 64):  # what is only slow once
        engine.serve(4, [SessionTurn(number, draw(rng, tokens), 8, last=True) for number in range(4)])
    engine.reset()
    samples: list[Sample] = []
    all_waves = draw_waves(rng)
    for number, (concurrency, turns) in enumerate(all_waves, start=1):
        samples += engine.serve(concurrency, turns)
        print(f"{number} of {len(all_waves)} waves, {len(samples)} steps", file=sys.stderr, flush=True)
    args.out.write_text(json.dumps([asdict(sample) for sample in samples]) + "\n")


if __name__ == "__main__":
    main()
