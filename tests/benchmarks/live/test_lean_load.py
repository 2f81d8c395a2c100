"""The lean engines and the lean load together, and what the load says of answers that are not right."""

import asyncio
import itertools
import json

import pytest

from benchmarks.live.gateway_process import free_port
from benchmarks.live.instant_engine import TEXT
from benchmarks.live.lean_engine import EngineConnection
from benchmarks.live.lean_load import GROUPS, SYSTEM_BYTES, Chats, check, closed_loop, connected


def body_of(request: bytes) -> dict[str, object]:
    head, _, body = request.partition(b"\r\n\r\n")
    assert f"content-length: {len(body)}".encode() in head
    found: dict[str, object] = json.loads(body)
    return found


def test_chats_share_their_beginnings_and_nothing_else() -> None:
    chats = Chats(2_000, 32)
    bodies = [body_of(chats.request(number)) for number in range(200)]
    contents = [[message["content"] for message in body["messages"]] for body in bodies]  # type: ignore[attr-defined]
    systems, questions = zip(*contents, strict=True)
    assert {len(system) for system in systems} == {SYSTEM_BYTES}
    assert {len(system) + len(question) for system, question in contents} == {2_000}
    assert (len(set(systems)), len({question[:16] for question in questions})) == (GROUPS, 200)
    assert {(body["stream"], body["max_tokens"]) for body in bodies} == {(True, 32)}
    assert chats.request(7) == chats.request(7)


@pytest.mark.parametrize(("prompt_bytes", "chunks"), [(2_000, 0), (100_000, 0), (2_000, 1), (2_000, 5)])
async def test_answers_are_read_to_their_end(prompt_bytes: int, chunks: int) -> None:
    port, numbers = free_port(), itertools.count()
    server = await asyncio.get_running_loop().create_server(lambda: EngineConnection(0.002), "127.0.0.1", port)
    async with server, connected([f"http://127.0.0.1:{port}"], 3) as connections:
        load = await closed_loop(connections, Chats(prompt_bytes, chunks), numbers.__next__, 0.03)
        answer = await connections[0].ask(Chats(prompt_bytes, chunks).request(0))
    assert len(load.latency_s) == len(load.first_byte_s) == next(numbers) >= 3
    assert load.wall_s >= 0.03
    assert all(0 < first <= last for first, last in zip(load.first_byte_s, load.latency_s, strict=True))
    assert min(load.latency_s) >= 0.001 * max(0, chunks - 1)
    assert f'"prompt_tokens": {len(Chats(prompt_bytes, chunks).request(0)) // 4},'.encode() in answer


async def test_chats_that_begin_alike_are_rendered_alike() -> None:
    port = free_port()
    numbers = range(60)
    server = await asyncio.get_running_loop().create_server(lambda: EngineConnection(0.0), "127.0.0.1", port)
    async with server, connected([f"http://127.0.0.1:{port}"], 1) as (connection,):
        requests = [Chats(2_000, 0).request(number).replace(b" HTTP", b"/render HTTP", 1) for number in numbers]
        answers = [await connection.ask(request) for request in requests]
    tokens = [tuple(json.loads(answer.partition(b"\r\n\r\n")[2])["token_ids"]) for answer in answers]
    assert {len(ids) for ids in tokens} == {len(requests[0].partition(b"\r\n\r\n")[2]) // 4}
    assert len({ids[: SYSTEM_BYTES // 4] for ids in tokens}) == GROUPS
    assert len(set(tokens)) == len(numbers)


def test_wrong_answers_are_told() -> None:
    head, piece = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n", b'{"content": " word"}'
    check(head + b"14\r\n" + piece + b"\r\nc\r\ndata: [DONE]\r\n0\r\n\r\n", 1)
    check(head + b"f\r\n" + piece[:15] + b"\r\n5\r\n" + piece[15:] + b"\r\nc\r\ndata: [DONE]\r\n0\r\n\r\n", 1)
    check(b"HTTP/1.1 200 OK\r\n\r\n" + TEXT.encode(), 0)
    wrong = [
        (head + b"14\r\n" + piece + b"\r\nc\r\ndata: [DONE]\r\n0\r\n\r\n", 2),
        (head + b"14\r\n" + piece + b"\r\n0\r\n\r\n", 1),
        (b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 2\r\n\r\n{}", 1),
        (b"HTTP/1.1 503 Service Unavailable\r\n\r\n" + TEXT.encode(), 0),
        (b"HTTP/1.1 200 OK\r\n\r\nLyon", 0),
    ]
    for answer, chunks in wrong:
        with pytest.raises(ValueError, match="a wrong answer"):
            check(answer, chunks)


async def test_a_connection_that_breaks_ends_the_load() -> None:
    async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nhalf")
        writer.close()
        await writer.wait_closed()

    server = await asyncio.start_server(hang_up, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with server, connected([f"http://127.0.0.1:{port}"], 1) as connections:
        with pytest.raises(ConnectionError, match="lost"):
            await closed_loop(connections, Chats(2_000, 0), itertools.count().__next__, 0.0)
