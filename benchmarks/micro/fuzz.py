"""A million inputs that nobody would send in earnest, to all parts of the gateway that see the bytes of strangers.

    .venv/bin/python -m benchmarks.micro.fuzz --inputs 1000000 --http 50000 --out fuzz.json

First within this process (`fuzz_target`): whatever comes, a part accepts it or refuses it by its declared error, and
keeps nothing of it. Then over sockets: a real `leafcutter serve` gets raw bytes, each input on a connection of its own.
Every connection must come to its end, and every answer must be a success or a clean refusal: no status of 500 or above
but for 505, and no redirect. Afterwards a request must be answered as before, and nothing may be in flight.

The inputs are the same for the same `--seed`. The exit status is 1 if there was any fault; each is printed with the
input that showed it.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import uvloop

from benchmarks.micro.fuzz_clients import BodyTarget, ClientTarget, FormTarget
from benchmarks.micro.fuzz_engines import AnswerTarget, EngineTarget, FactsTarget, StreamTarget
from benchmarks.micro.fuzz_http import fuzz_http
from benchmarks.micro.fuzz_mutator import Mutator
from benchmarks.micro.fuzz_processes import ProtocolTarget
from benchmarks.micro.fuzz_target import Target
from benchmarks.report import machine, markdown_table, write_json

TARGETS: dict[str, type[Target]] = {
    "requests": ClientTarget,
    "bodies": BodyTarget,
    "forms": FormTarget,
    "answers": AnswerTarget,
    "streams": StreamTarget,
    "engines' HTTP": EngineTarget,
    "engines' facts": FactsTarget,
    "messages of processes": ProtocolTarget,
}
SLOW_S = 1.0  # of CPU time; no input may take so long
MOST_FAULTS = 20  # of one part are kept


@dataclass
class Found:
    """What came of the inputs to one part. faults: each with the input that showed it."""

    inputs: int = 0
    accepted: int = 0
    seconds: float = 0.0
    faults: list[str] = field(default_factory=list)


async def feed(target: Target, inputs: int, seed: int) -> Found:
    """Feed so many inputs to one part."""
    found, rng = Found(), random.Random(seed)
    mutator = Mutator(target.seeds, rng)
    for _ in range(inputs):
        data, begun_s = mutator.next(), time.process_time()
        try:
            found.accepted += await target.accepts(data, rng)
        except Exception as error:
            words = traceback.format_exception(error)[-3:]
            found.faults += [f"{data!r}: {''.join(words)}"] * (len(found.faults) < MOST_FAULTS)
        took_s = time.process_time() - begun_s
        if took_s > SLOW_S:
            found.faults.append(f"{data!r}: {took_s:.1f} s")
        found.inputs += 1
        found.seconds += took_s
    return found


async def fuzz(inputs: int, seed: int, only: Sequence[str] = ()) -> dict[str, Found]:
    """Feed so many inputs to all parts, by their weights."""
    whole = sum(target.weight for target in TARGETS.values())
    return {
        name: await feed(target(), round(inputs * target.weight / whole), seed)
        for name, target in TARGETS.items()
        if not only or name in only
    }


def table(found: Mapping[str, Mapping[str, Any]]) -> str:
    rows = [
        (name, f"{each['inputs']:,}", f"{each['accepted']:,}", str(len(each["faults"]))) for name, each in found.items()
    ]
    return markdown_table(["what was fed", "inputs", "accepted", "faults"], rows)


async def measure(args: argparse.Namespace) -> dict[str, Any]:
    found = {name: vars(each) for name, each in (await fuzz(args.inputs, args.seed, args.only)).items()}
    if args.http:
        found["sockets"] = await fuzz_http(args.http, args.seed, args.log)
    return {"seed": args.seed, "parts": found}


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--inputs", type=int, default=100_000, help="within this process")
    parser.add_argument("--http", type=int, default=0, help="inputs over sockets")
    parser.add_argument("--only", nargs="+", default=(), choices=TARGETS, metavar="PART", help="feed no others")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--log", type=Path, default=Path(os.devnull), help="file for the gateway's log")
    parser.add_argument("--out", type=Path, help="file for the figures, JSON")
    return parser.parse_args(argv)


def main() -> int:
    args = parse()
    figures = uvloop.run(measure(args))
    if args.out:
        write_json(args.out, {**machine(), **figures})
    print(table(figures["parts"]))
    faults = [f"{name}: {fault}" for name, each in figures["parts"].items() for fault in each["faults"]]
    print(*faults, sep="\n", file=sys.stderr)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
