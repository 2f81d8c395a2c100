"""The requests of the paper's authors' scripts (github.com/fzwark/KVRouting), where the simulator has no such shape.

    gsp_text           `gsp`, but the halves of a prompt are equal only up to what their characters make of them
    gsp_text_rotating  the same, the groups in turn
    turns              multi-turn.py: 2, 4, 6, 8 turns of 1024 new tokens, 4 out, which it forces for ShareGPT and
                       UltraChat alike; about 128 conversations open at once
    documents          long.py: 512 documents of 1024, 2048, 4096 and, its limit, some 8064 tokens, in random order; 8
                       questions each, about the mean of LooGLE, as which of its files they used is not said

Policies that compare lengths compare characters, of which a text of random tokens has more or fewer by chance: of a
prompt whose first half is shared, 49 to 51 % match. The authors' conversations continue at random, sometimes with the
same turn twice; here each goes on at its own pace, a turn after the answer before it.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import count, cycle, islice
from statistics import fmean

from router.sim.fleet.dialog import Turn
from router.sim.fleet.traffic import GROUPS, LENGTHS, TOKEN_IDS_PER_SESSION, Sampler, Session
from router.types import Prompt

CLIENTS = 128
TURNS = (2, 4, 6, 8)
TURN, ANSWER, QUESTION = 1024, 4, 30  # tokens
DOCUMENTS, QUESTIONS = 512, 8
LONG = (1024, 2048, 4096, 8064)
CHARACTERS = 0.55  # of a random token: standard deviation over mean, an estimate

Begun = Iterator[tuple[Prompt, tuple[Turn, ...]]]


def gsp_text(write: Sampler, rate: float, *, rotating: bool = False) -> Begun:  # noqa: ARG001  (asked one by one)
    halves = [length // 2 for length in islice(cycle(LENGTHS), GROUPS)]
    write.rng.shuffle(halves)

    def surplus(half: int) -> float:
        """Characters, as tokens, that `half` tokens have beyond their average."""
        return write.rng.gauss(0, CHARACTERS * half**0.5)

    groups = [(write.text(half), half, surplus(half)) for half in halves]
    while True:
        deck = groups * 32
        if not rotating:
            write.rng.shuffle(deck)
        for head, half, more in deck:
            yield head, (Turn(0.0, round(half - more + surplus(half)), ANSWER),)


def turns(write: Sampler, rate: float) -> Begun:
    start, pause_s = write.text(0), CLIENTS / rate
    for number in count():
        asked = range(TURNS[number % len(TURNS)])
        yield start, tuple(Turn(write.rng.expovariate(1 / pause_s), TURN, ANSWER) for _ in asked)


def documents(write: Sampler, rate: float) -> Begun:  # noqa: ARG001  (asked one by one)
    while True:
        heads = [write.text(length) for length in islice(cycle(LONG), DOCUMENTS)] * QUESTIONS
        write.rng.shuffle(heads)
        for head in heads:
            yield head, (Turn(0.0, QUESTION, ANSWER),)


SCRIPTS: Mapping[str, Callable[[Sampler, float], Begun]] = {
    "gsp_text": gsp_text,
    "gsp_text_rotating": partial(gsp_text, rotating=True),
    "turns": turns,
    "documents": documents,
}


@dataclass(frozen=True)
class Scripted:
    """A `Traffic` of the simulator: the first `requests` of one of `SCRIPTS`, `request_rate` of them a second."""

    label: str
    request_rate: float
    requests: int

    @property
    def rate(self) -> float:
        return self.request_rate / (fmean(TURNS) if self.label == "turns" else 1)

    def open(self, seed: int, block_tokens: int) -> Iterator[Session]:
        times, now, sent = random.Random(~seed), 0.0, 0
        begun = SCRIPTS[self.label](Sampler(random.Random(seed), block_tokens), self.request_rate)
        for number, (head, session_turns) in enumerate(begun, start=1):
            now += times.expovariate(self.rate)
            yield Session(now, head, session_turns, number * TOKEN_IDS_PER_SESSION, sets_max_tokens=True)
            sent += len(session_turns)
            if sent >= self.requests:
                return
