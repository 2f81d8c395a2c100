from __future__ import annotations

import asyncio
import io
import json
import os
import pickle
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from router.errors import BadRequest
from router.gateway.apis import CHAT
from router.gateway.body_reader import LARGE_BYTES, LENGTH, BodyReader, serve
from router.gateway.openai_request import parse_request
from router.prefix.blocks import MOST_BLOCKS
from tests.support.gateway_server import served, until

ABOUT: dict[str, Any] = {"route": CHAT, "headers": {}, "request_id": "r", "block_tokens": 16}


def chat(content: object, **fields: object) -> bytes:
    return json.dumps({"model": "m", "messages": [{"role": "user", "content": content}], **fields}).encode()


LARGE = chat("word " * (LARGE_BYTES // 4), stream=True)


@asynccontextmanager
async def running() -> AsyncIterator[BodyReader]:
    reader = BodyReader()
    async with reader.running():
        yield reader


@pytest.mark.parametrize(
    "body",
    [
        chat("hello"),
        LARGE,
        chat([{"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * LARGE_BYTES}}]),
        json.dumps({"messages": [{"role": "user", "content": ""}] * (LARGE_BYTES // 30)}).encode(),
        chat("\ud800" * LARGE_BYTES, stream=True, stream_options={}),
    ],
    ids=["small", "large", "image", "many messages", "rewritten"],
)
async def test_bodies_of_any_size_are_read_alike(body: bytes) -> None:
    async with running() as reader:
        assert await reader.read(body, **ABOUT) == parse_request(body, **ABOUT)
        assert (reader._process is not None) is (len(body) >= LARGE_BYTES)


SOUND = b'--b\r\ncontent-disposition: form-data; name="file"; filename="a"\r\n\r\n' + b"x" * LARGE_BYTES
FORM = SOUND + b'\r\n--b\r\ncontent-disposition: form-data; name="model"\r\n\r\nwhisper-1\r\n--b--\r\n'
LONG_TURN = {"role": "user", "content": [{"type": "text", "text": "word " * LARGE_BYTES}]}


@pytest.mark.parametrize(
    ("route", "body", "content_type"),
    [
        ("/v1/messages", json.dumps({"model": "whisper-1", "messages": [LONG_TURN]}).encode(), b"application/json"),
        ("/v1/responses", json.dumps({"model": "whisper-1", "input": [LONG_TURN]}).encode(), b""),
        ("/v1/embeddings", json.dumps({"model": "whisper-1", "input": ["word"] * LARGE_BYTES}).encode(), b""),
        ("/v1/audio/transcriptions", FORM, b"multipart/form-data; boundary=b"),
        ("/v1/opened/{path}", b"\x00" * LARGE_BYTES, b"application/octet-stream"),
    ],
)
async def test_bodies_of_every_api_are_read_alike(route: str, body: bytes, content_type: bytes) -> None:
    about = {**ABOUT, "route": route, "headers": {b"content-type": content_type}, "aliases": {"whisper-1": "w"}}
    async with running() as reader:
        request = await reader.read(body, **about)
        assert request == parse_request(body, **about)
        assert reader._process is not None
        sent = b"".join(request.body_for_engine(body))
        assert (b"whisper-1" in sent) is False
        assert len(sent) == len(body) - 8 * body.count(b"whisper-1")


@pytest.mark.parametrize(
    "body", [b"[" * LARGE_BYTES, b"{" + b" " * LARGE_BYTES, chat(3).replace(b"messages", b"x" * LARGE_BYTES)]
)
async def test_errors_come_back_as_they_are(body: bytes) -> None:
    async with running() as reader:
        with pytest.raises(BadRequest) as caught:
            await reader.read(body, **ABOUT)
        with pytest.raises(BadRequest) as expected:
            parse_request(body, **ABOUT)
        assert (caught.value.message, caught.value.param) == (expected.value.message, expected.value.param)
        assert (await reader.read(LARGE, **ABOUT)).parsed.stream


async def test_bodies_at_the_same_time_get_their_own_answers() -> None:
    bodies = [chat(f"{n} " * LARGE_BYTES) for n in range(6)]
    async with running() as reader:
        answers = await asyncio.gather(*(reader.read(body, **ABOUT) for body in bodies))
    assert answers == [parse_request(body, **ABOUT) for body in bodies]


async def test_a_helper_that_died_is_replaced() -> None:
    async with running() as reader:
        await reader.read(LARGE, **ABOUT)
        assert reader._process is not None
        first = reader._process.pid
        os.kill(first, signal.SIGKILL)
        assert await reader.read(LARGE, **ABOUT) == parse_request(LARGE, **ABOUT)
        assert reader._process.pid != first


async def test_a_reading_that_is_given_up_does_not_mix_up_the_next() -> None:
    async with running() as reader:
        await reader.read(LARGE, **ABOUT)
        task = asyncio.create_task(reader.read(chat("a " * 4 * LARGE_BYTES), **ABOUT))
        await asyncio.sleep(0.001)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await reader.read(LARGE, **ABOUT) == parse_request(LARGE, **ABOUT)


async def test_the_helper_ends_with_its_input() -> None:
    async with running() as reader:
        await reader.read(LARGE, **ABOUT)
        process = reader._process
        assert process is not None
        assert process.stdin is not None
        process.stdin.close()
        assert await asyncio.wait_for(process.wait(), 10) == 0
    source = io.BytesIO(LENGTH.pack(4) + b"x")
    with pytest.raises(pickle.UnpicklingError):
        serve(source, io.BytesIO())


async def test_a_prompt_beyond_all_contexts_has_no_keys_at_its_end() -> None:
    async with running() as reader:
        request = await reader.read(chat("a" * 64 * (MOST_BLOCKS + 5)), **ABOUT)
    prompt = request.parsed.prompt
    assert (len(prompt.keys), prompt.tail) == (MOST_BLOCKS, b"")
    assert prompt.units > 64 * (MOST_BLOCKS + 5)
    assert request.reply_keys({"role": "assistant", "content": "b" * 200}, ()) == ()


async def test_a_large_request_passes_the_gateway_whole_and_small_ones_beside_it() -> None:
    text = "word " * (4 << 20)
    async with served() as gateway:
        large = asyncio.create_task(gateway.post(messages=[{"role": "user", "content": text}], stream=True))
        small = 0
        while not large.done():
            assert (await gateway.post()).status_code == 200
            small += 1
        response = await large
        assert response.status_code == 200
        assert b"include_usage" not in response.content
        assert small > 3
        await until(lambda: gateway.in_flight() == 0)
        received = max(gateway.engines[0].requests, key=lambda request: len(request.body))
        assert received.json["messages"][0]["content"] == text
        assert received.json["stream_options"] == {"include_usage": True}
