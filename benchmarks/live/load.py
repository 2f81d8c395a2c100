"""Plays sessions against an OpenAI endpoint and takes the times of every answer."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import httpx

from benchmarks.live.workload import Session, Turn


@dataclass(frozen=True)
class Answer:
    at_s: float
    """When its request was sent, seconds since the replay began."""
    latency_s: float
    ttft_s: float
    engine: str
    text: str


async def replay(url: str, name: str, sessions: Sequence[Session]) -> list[Answer]:
    """Starts every session at its time, whatever became of the others (an open loop); answers by time of sending.

    A session ends with its first request that fails: it and the turns behind it have no answer.
    """
    start = time.perf_counter()
    async with httpx.AsyncClient(base_url=url, timeout=600, limits=httpx.Limits(max_connections=None)) as client:
        found = await asyncio.gather(*(_converse(client, name, session, start) for session in sessions))
    return sorted((answer for answers in found for answer in answers), key=lambda answer: answer.at_s)


async def _converse(client: httpx.AsyncClient, name: str, session: Session, start: float) -> list[Answer]:
    await asyncio.sleep(max(0.0, session.at_s - (time.perf_counter() - start)))
    messages = [{"role": "system", "content": session.system}]
    answers: list[Answer] = []
    for turn in session.turns:
        await asyncio.sleep(turn.think_s)
        messages.append({"role": "user", "content": turn.text})
        try:
            answers.append(await _ask(client, name, turn, None if session.system is None else messages, start))
        except httpx.HTTPError as error:
            print(f"a session ends at turn {len(answers) + 1} of {len(session.turns)}: {error!r}", file=sys.stderr)
            break
        messages.append({"role": "assistant", "content": answers[-1].text})
    return answers


async def _ask(
    client: httpx.AsyncClient, name: str, turn: Turn, messages: list[dict[str, str | None]] | None, start: float
) -> Answer:
    """One streamed request; a bare completion of the turn where there are no messages. Raises httpx.HTTPError."""
    body: dict[str, Any] = {"model": name, "max_tokens": turn.tokens, "temperature": 0, "stream": True}
    if messages is None:
        path, body = "/v1/completions", {**body, "prompt": turn.text, "ignore_eos": True}
    else:
        path, body = "/v1/chat/completions", {**body, "messages": messages}
    sent, first, chunks = time.perf_counter(), None, []
    async with client.stream("POST", path, json=body) as answer:
        answer.raise_for_status()
        async for chunk in answer.aiter_bytes():
            first = first or time.perf_counter() - sent
            chunks.append(chunk)
        engine = answer.headers["x-leafcutter-engine"]
    assert first is not None
    return Answer(sent - start, time.perf_counter() - sent, first, engine, _text(b"".join(chunks)))


def _text(stream: bytes) -> str:
    """What the events of a whole stream slowdown."""
    text = ""
    for line in stream.splitlines():
        if line.startswith(b"data: {"):
            for choice in json.loads(line[6:])["choices"]:
                text += choice.get("text") or choice.get("delta", {}).get("content") or ""
    return text
