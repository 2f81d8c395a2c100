"""The load generator: requests to an OpenAI endpoint, the times at which their answers came, and what they said.

`replay` plays sessions as an open loop: each begins at its time, whatever became of the others. `closed_loop` keeps a
number of clients busy: each sends its next request when it has the answer to the last one.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
import time
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import aiohttp

from benchmarks.live.session import Content, Session, Turn

CHAT, COMPLETION = "/v1/chat/completions", "/v1/completions"
TIMEOUT_S = 600.0
"""Between two reads of an answer."""

PacedBody = tuple[float, bytes]
"""Seconds that a client waits before it sends the request, and the request's body."""


@dataclass(frozen=True)
class Answer:
    """One whole answer. Its times are in seconds since its request was sent, but for `sent_s`."""

    sent_s: float
    """When its request was sent, seconds since the load began."""
    latency_s: float
    chunk_s: tuple[float, ...]
    """When each piece of the body arrived; pieces that arrived together count once. At least one."""
    streamed: bool
    engine: str | None
    """The engine's id, as the gateway told it."""
    body: bytes

    @property
    def ttft_s(self) -> float:
        return self.chunk_s[0]


class Client:
    """Sends requests to one base URL over as many connections as it takes; `start`: when the load began."""

    def __init__(self, session: aiohttp.ClientSession, start: float) -> None:
        self._session, self._start = session, start

    async def wait_until(self, load_s: float) -> None:
        """Sleep until so many seconds after the load began."""
        await asyncio.sleep(max(0.0, load_s - (time.perf_counter() - self._start)))

    async def post(self, path: str, body: bytes) -> Answer:
        """Send one request and read its answer to the end. Raises aiohttp.ClientError."""
        sent, chunks, chunk_s = time.perf_counter(), [], []
        async with self._session.post(path, data=body, headers={"content-type": "application/json"}) as response:
            response.raise_for_status()
            async for chunk in response.content.iter_any():
                chunk_s.append(time.perf_counter() - sent)
                chunks.append(chunk)
            latency_s = time.perf_counter() - sent
            engine = response.headers.get("x-leafcutter-engine")
            streamed = response.content_type == "text/event-stream"
        if not chunks:
            raise aiohttp.ClientPayloadError("the answer is empty")
        return Answer(sent - self._start, latency_s, tuple(chunk_s), streamed, engine, b"".join(chunks))


@asynccontextmanager
async def connect(url: str) -> AsyncIterator[Client]:
    """A client whose load begins now."""
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=TIMEOUT_S, sock_read=TIMEOUT_S)
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(url, connector=connector, timeout=timeout) as session:
        yield Client(session, time.perf_counter())


# --- open loop --------------------------------------------------------------------------------------------------------


async def replay(url: str, model: str, sessions: Sequence[Session], *, strict: bool = False) -> list[Answer]:
    """Answers in the order in which their requests were sent.

    A session ends with its first request that fails: that request and the turns behind it have no answer. With `strict`
    the first failure raises aiohttp.ClientError instead.
    """
    async with connect(url) as client:
        found = await asyncio.gather(*(_converse(client, model, session, strict) for session in sessions))
    return sorted((answer for answers in found for answer in answers), key=lambda answer: answer.sent_s)


async def _converse(client: Client, model: str, session: Session, strict: bool) -> list[Answer]:
    await client.wait_until(session.arrival_s)
    history: list[Content] = []
    answers: list[Answer] = []
    for turn in session.turns:
        await asyncio.sleep(turn.think_s)
        history.append(turn.content)
        path, body = request_of(model, session.system, history, turn.output_tokens)
        try:
            answer = await client.post(path, json.dumps(body).encode())
            history.append(_reply(answer, turn))
        except aiohttp.ClientError as error:
            if strict:
                raise
            print(f"a session ends at turn {len(answers) + 1} of {len(session.turns)}: {error!r}", file=sys.stderr)
            break
        answers.append(answer)
    return answers


def request_of(
    model: str, system: str | None, history: Sequence[Content], output_tokens: int
) -> tuple[str, dict[str, Any]]:
    """Path and body of the streamed request behind `history`: turns and answers alternate, a turn being the last."""
    body: dict[str, Any] = {"model": model, "max_tokens": output_tokens, "temperature": 0, "stream": True}
    if system is not None:
        messages: list[dict[str, Content]] = [{"role": "system", "content": system}]
        messages += [
            {"role": "assistant" if index % 2 else "user", "content": content} for index, content in enumerate(history)
        ]
        return CHAT, {**body, "messages": messages}
    body["ignore_eos"] = True
    if isinstance(history[0], str):
        return COMPLETION, {**body, "prompt": "".join(content for content in history if isinstance(content, str))}
    return COMPLETION, {**body, "prompt": [token for ids in history for token in ids], "return_token_ids": True}


def _reply(answer: Answer, turn: Turn) -> Content:
    """What the engine said. Raises aiohttp.ClientPayloadError if token ids are missing."""
    events = [json.loads(line[6:]) for line in answer.body.splitlines() if line.startswith(b"data: {")]
    choices = [choice for event in events for choice in event["choices"]]
    if isinstance(turn.content, str):
        return "".join(choice.get("text") or choice.get("delta", {}).get("content") or "" for choice in choices)
    ids = tuple(token for choice in choices for token in choice["token_ids"] or ())
    if len(ids) != turn.output_tokens:
        raise aiohttp.ClientPayloadError(f"{len(ids)} tokens came, {turn.output_tokens} were asked for")
    return ids


# --- closed loop ------------------------------------------------------------------------------------------------------


async def closed_loop(url: str, clients: Sequence[Iterable[PacedBody]]) -> list[Answer]:
    """Send each client's chats, one at a time; clients may share one iterator. Raises aiohttp.ClientError."""
    async with connect(url) as client:
        answers: list[Answer] = []

        async def run(requests: Iterable[PacedBody]) -> None:
            for pause_s, body in requests:
                if pause_s:
                    await asyncio.sleep(pause_s)
                answers.append(await client.post(CHAT, body))

        await asyncio.gather(*map(run, clients))
    return answers


def chat_body(number: int, *, stream: bool) -> bytes:
    """A chat of 2.4 kB, whose first half every sixteenth number shares."""
    text = f"system {number % 16} " * 100 + f"question {number} " * 60
    return json.dumps({"model": "m", "stream": stream, "messages": [{"role": "user", "content": text}]}).encode()


def busy_client(index: int, *, end: float, stream: bool, pause_s: float) -> Iterable[PacedBody]:
    """Chats until `time.perf_counter()` is past `end`, with exponential pauses of that mean before each.

    The pauses keep clients out of step: requests that arrive together lengthen one turn of the gateway's loop.
    """
    rng, number = random.Random(index), index * 100_000
    while time.perf_counter() < end:
        number += 1
        yield rng.expovariate(1 / pause_s), chat_body(number, stream=stream)
