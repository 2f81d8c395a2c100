"""The sessions of workload.py as token ids: the very same requests for a real gateway and for the simulator.

A talk's next prompt is all that was said before, the engine's own answer included, and the turn's new tokens: a bare
completion without a chat template, whose answer has exactly as many tokens as asked for.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import httpx

from router.sim.fleet import dialog
from router.sim.fleet.dialog import chain_tokens
from router.sim.fleet.traffic import OWN_IDS, Session

if TYPE_CHECKING:
    from benchmarks.live import workload

TIMEOUT_S = 600


@dataclass(frozen=True)
class Turn:
    tokens: tuple[int, ...]
    output_tokens: int
    think_s: float
    """Between the answer before and this turn."""


@dataclass(frozen=True)
class Talk:
    at_s: float
    turns: tuple[Turn, ...]


@dataclass(frozen=True)
class Talks:
    """Sessions as the simulator's traffic; `rate`: sessions a second."""

    label: str
    rate: float
    talks: tuple[Talk, ...]

    @property
    def requests(self) -> int:
        return sum(len(talk.turns) for talk in self.talks)

    def paced(self, rate: float) -> Talks:
        """The same sessions at another rate."""
        scale = self.rate / rate
        return Talks(self.label, rate, tuple(replace(talk, at_s=talk.at_s * scale) for talk in self.talks))

    def open(self, seed: int, block_tokens: int) -> Iterator[Session]:  # noqa: ARG002  (they are what they are)
        for number, talk in enumerate(self.talks, start=1):
            first, *later = talk.turns
            turns = [dialog.Turn(turn.think_s, len(turn.tokens), turn.output_tokens) for turn in later]
            opening = dialog.Turn(0.0, 0, first.output_tokens)
            head = chain_tokens(first.tokens, block_tokens)
            yield Session(talk.at_s, head, (opening, *turns), number * OWN_IDS, told=True)


@dataclass(frozen=True)
class Taken:
    """What one answer took."""

    latency_s: float
    ttft_s: float


def tokenise(model: str, sessions: Sequence[workload.Session]) -> tuple[Talk, ...]:
    """By the model's own tokenizer; `model`: a hub name or a folder."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)

    def encode(text: str) -> tuple[int, ...]:
        return tuple(tokenizer(text, add_special_tokens=False)["input_ids"])

    def talk(session: workload.Session) -> Talk:
        turns = [Turn(encode(turn.text), turn.tokens, turn.think_s) for turn in session.turns]
        turns[0] = replace(turns[0], tokens=encode(session.system or "") + turns[0].tokens)
        return Talk(session.at_s, tuple(turns))

    return tuple(talk(session) for session in sessions)


async def converse_all(url: str, name: str, talks: Sequence[Talk]) -> list[Taken]:
    """Starts every talk at its time, whatever became of the others (an open loop). Raises httpx.HTTPError."""
    start = time.perf_counter()
    async with httpx.AsyncClient(base_url=url, timeout=TIMEOUT_S, limits=httpx.Limits(max_connections=None)) as client:
        found = await asyncio.gather(*(_converse(client, name, talk, start) for talk in talks))
    return [taken for each in found for taken in each]


async def _converse(client: httpx.AsyncClient, name: str, talk: Talk, start: float) -> list[Taken]:
    await asyncio.sleep(max(0.0, talk.at_s - (time.perf_counter() - start)))
    said: list[int] = []
    found = []
    for turn in talk.turns:
        await asyncio.sleep(turn.think_s)
        said += turn.tokens
        taken, answer = await _ask(client, name, said, turn.output_tokens)
        said += answer
        found.append(taken)
    return found


async def _ask(client: httpx.AsyncClient, name: str, prompt: list[int], tokens: int) -> tuple[Taken, list[int]]:
    body: dict[str, Any] = {"model": name, "prompt": prompt, "max_tokens": tokens, "temperature": 0, "stream": True}
    body |= {"ignore_eos": True, "return_token_ids": True}
    sent, first_s, chunks = time.perf_counter(), None, []
    async with client.stream("POST", "/v1/completions", json=body) as answer:
        answer.raise_for_status()
        async for chunk in answer.aiter_bytes():
            first_s = first_s or time.perf_counter() - sent
            chunks.append(chunk)
    took_s = time.perf_counter() - sent
    assert first_s is not None
    events = [json.loads(line[6:]) for line in b"".join(chunks).splitlines() if line.startswith(b"data: {")]
    ids = [token for event in events for choice in event["choices"] for token in choice["token_ids"] or ()]
    if len(ids) != tokens:
        raise httpx.DecodingError(f"{len(ids)} tokens came, {tokens} were asked for")
    return Taken(took_s, first_s), ids
