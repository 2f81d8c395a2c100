"""The workloads of the live benchmarks: sessions drawn from a seed alone, so that every cell gets the very same.

- `gsp` (section 5 of arXiv 2601.18999): groups of prompts that share their first half, in random order; a session is
  one bare completion.
- `chat`: conversations of several turns with think times between them, under one of a few system prompts.

Both arrive as a Poisson process. Lengths are in words of about 2.6 tokens (SmolLM2's tokenizer).
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Callable, Mapping
from dataclasses import replace

from benchmarks.live.session import Session, Turn

SYLLABLES = [a + b + c for a in "bdfgklmnprst" for b in "aeiou" for c in ("n", "r", "l", "s")]


def words(rng: random.Random, count: int) -> str:
    return " ".join(rng.choice(SYLLABLES) + rng.choice(SYLLABLES) for _ in range(count))


def gsp(args: argparse.Namespace, seed: int) -> list[Session]:
    """`groups` x `prompts` requests in random order; lengths are in words, drawn per group."""
    rng = random.Random(seed)
    prompts = []
    for _ in range(args.groups):
        length = rng.choice(args.lengths)
        shared = words(rng, length // 2)
        prompts += [f"{shared} {words(rng, length - length // 2)}" for _ in range(args.prompts)]
    rng.shuffle(prompts)
    arrival_s, sessions = 0.0, []
    for prompt in prompts:
        arrival_s += rng.expovariate(args.rate)
        sessions.append(Session(arrival_s, (Turn(prompt, args.tokens),)))
    return sessions


def chat(args: argparse.Namespace, seed: int) -> list[Session]:
    """`sessions` conversations: system prompts shared by many, exponential think times, uniform turns and lengths."""
    rng = random.Random(seed)
    systems = [words(rng, args.system_words) for _ in range(args.systems)]
    arrival_s, sessions = 0.0, []
    for _ in range(args.sessions):
        arrival_s += rng.expovariate(args.rate)
        turns = [
            Turn(words(rng, rng.randint(*args.turn_words)), args.tokens, rng.expovariate(1 / args.think_s))
            for _ in range(rng.randint(*args.turns))
        ]
        turns[0] = replace(turns[0], think_s=0.0)
        sessions.append(Session(arrival_s, tuple(turns), rng.choice(systems)))
    return sessions


WORKLOADS: Mapping[str, Callable[[argparse.Namespace, int], list[Session]]] = {"gsp": gsp, "chat": chat}
# What suits two engines on two cores: sessions a second, output tokens of a turn.
DEFAULTS: Mapping[str, tuple[float, int]] = {"gsp": (2.0, 4), "chat": (0.3, 24)}


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--workload", default="gsp", choices=WORKLOADS)
    parser.add_argument("--rate", type=float, help="sessions a second; gsp 2.0, chat 0.3")
    parser.add_argument("--tokens", type=int, help="output tokens of each turn; gsp 4, chat 24")
    parser.add_argument("--groups", type=int, default=32, help="gsp: groups")
    parser.add_argument("--prompts", type=int, default=8, help="gsp: prompts of each group")
    parser.add_argument("--lengths", type=int, nargs="+", default=[96, 192, 384], help="gsp: words of a prompt")
    parser.add_argument("--sessions", type=int, default=40, help="chat: conversations")
    parser.add_argument("--systems", type=int, default=4, help="chat: different system prompts")
    parser.add_argument("--system-words", type=int, default=80, help="chat: words of a system prompt")
    parser.add_argument("--turns", type=int, nargs=2, default=[3, 8], help="chat: fewest and most turns")
    parser.add_argument(
        "--turn-words", type=int, nargs=2, default=[8, 48], help="chat: fewest and most words of a turn"
    )
    parser.add_argument("--think-s", type=float, default=4.0, help="chat: mean think time, seconds")


def fill_defaults(args: argparse.Namespace) -> None:
    """The rate and output length that suit the chosen workload, where none were given."""
    rate, tokens = DEFAULTS[args.workload]
    args.rate = rate if args.rate is None else args.rate
    args.tokens = tokens if args.tokens is None else args.tokens
