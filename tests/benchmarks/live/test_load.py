"""The load generator against servers on the loopback address: what it sends, and what it makes of the answers."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from benchmarks.live.gateway_process import free_port
from benchmarks.live.instant_engine import TEXT, create_engine, event, instant_engines
from benchmarks.live.load import Answer, busy_client, chat_body, closed_loop, replay
from benchmarks.live.session import Session, Turn

TOKEN_TURNS = (Turn((1, 2), 2), Turn((3,), 2, think_s=0.01))


@asynccontextmanager
async def serving(app: web.Application) -> AsyncIterator[str]:
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        port = free_port()
        await web.TCPSite(runner, "127.0.0.1", port).start()
        yield f"http://127.0.0.1:{port}"
    finally:
        await runner.cleanup()


class Recorder:
    """An endpoint that keeps every request and answers it with the next of `replies`: choices, or an HTTP status."""

    def __init__(self, *replies: list[dict[str, Any]] | int) -> None:
        self.requests: list[tuple[str, dict[str, Any]]] = []
        self._replies = iter(replies)

    async def handle(self, request: web.Request) -> web.Response:
        self.requests.append((request.path, json.loads(await request.text())))
        reply = next(self._replies)
        if isinstance(reply, int):
            return web.Response(status=reply)
        body = b"".join(event({"choices": [choice]}) for choice in reply) + b"data: [DONE]\n\n"
        return web.Response(body=body, headers={"x-leafcutter-engine": "engine-1"}, content_type="text/event-stream")

    async def play(self, *sessions: Session, strict: bool = False) -> list[Answer]:
        app = web.Application()
        app.router.add_post("/{path:.*}", self.handle)
        async with serving(app) as url:
            return await replay(url, "m", sessions, strict=strict)


async def test_a_chat_repeats_what_was_said() -> None:
    server = Recorder([{"delta": {"content": "Ye"}}, {"delta": {"content": "s."}}], [{"delta": {}}])
    answers = await server.play(Session(0.0, (Turn("Is it?", 8), Turn("Why?", 8)), system="Be brief."))
    opening = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Is it?"}]
    later = [*opening, {"role": "assistant", "content": "Yes."}, {"role": "user", "content": "Why?"}]
    common = {"model": "m", "max_tokens": 8, "temperature": 0, "stream": True}
    assert server.requests == [
        ("/v1/chat/completions", {**common, "messages": opening}),
        ("/v1/chat/completions", {**common, "messages": later}),
    ]
    assert [(answer.engine, answer.streamed) for answer in answers] == [("engine-1", True)] * 2
    assert all(0 < answer.ttft_s <= answer.latency_s for answer in answers)
    assert answers[0].sent_s < answers[1].sent_s


async def test_text_without_a_system_prompt_is_a_bare_completion() -> None:
    server = Recorder([{"text": " one"}], [{"text": " two"}])
    await server.play(Session(0.0, (Turn("Count:", 4), Turn(" then", 4))))
    assert [path for path, _ in server.requests] == ["/v1/completions"] * 2
    assert [body["prompt"] for _, body in server.requests] == ["Count:", "Count: one then"]
    assert all(body["ignore_eos"] for _, body in server.requests)


async def test_token_ids_grow_by_the_answers_own() -> None:
    server = Recorder([{"token_ids": [7]}, {"token_ids": [8]}, {"token_ids": None}], [{"token_ids": [9, 9]}])
    await server.play(Session(0.0, TOKEN_TURNS))
    assert [body["prompt"] for _, body in server.requests] == [[1, 2], [1, 2, 7, 8, 3]]
    assert all(body["return_token_ids"] and body["ignore_eos"] for _, body in server.requests)


@pytest.mark.parametrize("failure", [503, [{"token_ids": [7]}]])
async def test_a_failure_ends_its_session_alone(failure: int | list[dict[str, Any]]) -> None:
    server = Recorder(failure, [{"token_ids": [7, 8]}], [{"token_ids": [9, 9]}])
    answers = await server.play(Session(0.0, TOKEN_TURNS), Session(0.05, TOKEN_TURNS))
    assert len(server.requests) == 3
    assert len(answers) == 2


@pytest.mark.parametrize("failure", [503, [{"token_ids": [7]}]])
async def test_a_failure_is_raised_where_every_answer_counts(failure: int | list[dict[str, Any]]) -> None:
    with pytest.raises(aiohttp.ClientError):
        await Recorder(failure).play(Session(0.0, TOKEN_TURNS), strict=True)


async def test_clients_share_what_there_is_to_send() -> None:
    bodies = iter([(0.0, chat_body(number, stream=number % 2 == 0)) for number in range(6)])
    async with serving(create_engine(chunks=3, gap_s=0.005)) as url:
        answers = await closed_loop(url, [bodies] * 2)
    streams = [answer for answer in answers if answer.streamed]
    assert (len(answers), len(streams)) == (6, 3)
    assert all(answer.body.count(b" word") == 3 and answer.body.endswith(b"data: [DONE]\n\n") for answer in streams)
    assert all(answer.chunk_s[-1] - answer.chunk_s[0] >= 0.01 for answer in streams)  # two of the gaps
    assert all(TEXT.encode() in answer.body for answer in answers if not answer.streamed)


async def test_engines_in_a_process_of_their_own() -> None:
    port = free_port()
    hosts = ["127.0.0.1", "127.0.0.2"]
    async with instant_engines(hosts, port, chunks=2), aiohttp.ClientSession() as client:
        for host in hosts:
            async with client.get(f"http://{host}:{port}/v1/models") as response:
                assert (await response.json())["data"] == [{"id": "m"}]
    async with aiohttp.ClientSession() as client:
        with pytest.raises(aiohttp.ClientConnectionError):
            await client.get(f"http://127.0.0.1:{port}/health")


def test_a_busy_client_stops_in_time() -> None:
    assert not list(busy_client(0, end=0.0, stream=True, pause_s=1.0))
