"""Answers of every form that HTTP allows, and of some that it does not, over real sockets."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress

import pytest

from router.config import configure
from router.errors import EngineLost, EngineTimeout
from router.gateway.engine_connection import BUFFERED_BYTES, HEAD_BYTES
from router.gateway.upstream import Upstream, UpstreamAnswer

Talk = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
Post = Callable[..., Awaitable[UpstreamAnswer]]
OK = b"HTTP/1.1 200 OK\r\n"
WHOLE = OK + b"content-length: 3\r\n\r\nabc"


class Engine:
    """An engine that answers each request on a connection by the same words. It counts connections and requests."""

    def __init__(self, *words: bytes, closes: bool = False) -> None:
        self.words, self.closes = words, closes
        self.heads: list[bytes] = []
        self.connections = 0
        self.url = ""

    async def talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            self.heads.append(head)
            length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
            await reader.readexactly(length)
            for words in self.words:
                writer.write(words)
                await writer.drain()
                await asyncio.sleep(0.002)
            if self.closes:
                break


@asynccontextmanager
async def running(engine: Engine, talk: Talk | None = None, **options: float) -> AsyncIterator[Upstream]:
    """Run an engine and what sends to it. talk: what the engine does, if not `Engine.talk`."""
    talks: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        talks.add(task)
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            await (talk or engine.talk)(reader, writer)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    engine.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    upstream = Upstream(configure(**options))
    async with upstream.running():
        yield upstream
    server.close()
    await asyncio.wait(talks, timeout=5)


@asynccontextmanager
async def asked(engine: Engine, talk: Talk | None = None, **options: float) -> AsyncIterator[Post]:
    """The same, and give a function that posts a body to the engine."""
    async with running(engine, talk, **options) as upstream:

        async def post(body: bytes = b"{}") -> UpstreamAnswer:
            return await upstream.send(engine.url, "/v1/completions", b"a=1", [(b"x-mine", b"1")], "r", [body])

        yield post


@pytest.mark.parametrize(
    ("words", "closes", "content", "kept"),
    [
        ([WHOLE], False, b"abc", True),
        ([WHOLE[:9], WHOLE[9:40], WHOLE[40:]], False, b"abc", True),
        (
            [OK, b"transfer-encoding: chunked\r\n\r\n3\r\nabc\r\n", b"2\r\nde\r\n0\r\nx-t: 1\r\n\r\n"],
            False,
            b"abcde",
            True,
        ),
        ([OK + b"\r\nabc", b"de"], True, b"abcde", False),
        ([b"HTTP/1.0 200 OK\r\ncontent-length: 3\r\n\r\nabc"], False, b"abc", False),
        ([OK + b"connection: close\r\ncontent-length: 3\r\n\r\nabc"], False, b"abc", False),
        ([b"HTTP/1.1 100 Continue\r\ncontent-length: 9\r\n\r\n", WHOLE], False, b"abc", True),
        ([b"HTTP/1.1 103 Early\r\nlink: x\r\n\r\n" + WHOLE], False, b"abc", True),
        ([b"HTTP/1.1 204 No\r\n\r\n"], False, b"", True),
        ([OK + b"content-length: 0\r\n\r\n"], False, b"", True),
        ([b"HTTP/1.1 599 Odd\r\ncontent-length: 3\r\n\r\nabc"], False, b"abc", True),
        ([WHOLE + WHOLE.replace(b"abc", b"xyz")], False, b"abc", False),
        ([WHOLE, WHOLE.replace(b"abc", b"xyz")], False, b"abc", False),
        ([WHOLE + b"junk"], False, b"abc", False),
    ],
    ids=[
        *("length", "in pieces", "chunked with a trailer", "until the end", "HTTP/1.0", "closing", "100", "103", "204"),
        *("empty", "highest status", "two answers at once", "two answers", "junk behind"),
    ],
)
async def test_an_answer_is_read_to_its_end_and_the_connection_kept_if_it_may_be(
    words: list[bytes], closes: bool, content: bytes, kept: bool
) -> None:
    engine = Engine(*words, closes=closes)
    async with asked(engine) as post:
        for turn in range(3):
            answer = await post()
            assert await answer.read_all() == content
            assert await answer.read() == b""
            assert not {b"link", b"x-t", b"transfer-encoding"} & dict(answer.headers).keys()
            if words[0].startswith(b"HTTP/1.1 599"):
                assert answer.status == 599
            await asyncio.sleep(0.02)  # whatever else the engine says arrives while the connection is not in use
            answer.close()
            assert engine.connections == (1 if kept else turn + 1)
    assert engine.heads[0].startswith(b"POST /v1/completions?a=1 HTTP/1.1\r\nhost: 127.0.0.1:")
    assert b"x-mine: 1\r\nx-request-id: r\r\naccept-encoding: identity\r\ncontent-length: 2\r\n\r\n" in engine.heads[0]


@pytest.mark.parametrize(
    "words",
    [
        [b"SSH-2.0-OpenSSH\r\n"],
        [b"HTTP/1.1 101 Switching\r\nupgrade: x\r\nconnection: upgrade\r\n\r\nzz"],
        [OK + b"x-a: " + b"a" * (HEAD_BYTES + 1) + b"\r\n\r\n"],
        [OK, *[b"x-a: " + b"a" * 4000 + b"\r\n"] * 20],
        [OK + b"content-length: 3\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n"],
        [OK + b"content-length: -1\r\n\r\n"],
        [OK + b"content-length: 4\r\n\r\nabc"],
        [OK + b"transfer-encoding: chunked\r\n\r\n3\r\nabc\r\n"],
        [OK + b"transfer-encoding: chunked\r\n\r\nzz\r\nabc\r\n"],
        [OK],
        [],
    ],
)
async def test_an_answer_that_is_broken_is_lost(words: list[bytes]) -> None:
    engine = Engine(*words, closes=True)
    async with asked(engine) as post:
        with pytest.raises(EngineLost):
            await (await post()).read_all()
        engine.words, engine.closes = (WHOLE,), False
        answer = await post()
        assert await answer.read_all() == b"abc"
        answer.close()


async def test_an_engine_that_refuses_a_large_body_early_is_heard() -> None:
    connections = 0

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 413 Large\r\ncontent-length: 3\r\n\r\nabc")
        await asyncio.sleep(0.3)

    engine = Engine()
    async with asked(engine, talk) as post:
        for turn in range(2):  # the rest of the body cannot be sent any more, so the connection is of no use
            answer = await post(b"x" * (64 << 20))
            assert (answer.status, await answer.read_all()) == (413, b"abc")
            answer.close()
            assert connections == turn + 1


async def test_a_large_body_arrives_whole() -> None:
    body = bytes(range(256)) * 40_000
    got: list[bytes] = []

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        got.append(await reader.readexactly(len(body)))
        writer.write(WHOLE)

    engine = Engine()
    async with asked(engine, talk) as post:
        answer = await post(body)
        assert await answer.read_all() == b"abc"
        answer.close()
    assert got == [body]


async def test_an_answer_that_nobody_reads_is_held_back() -> None:
    sent = 0

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        await reader.readuntil(b"\r\n\r\n")
        writer.write(OK + b"content-length: %d\r\n\r\n" % (64 << 20))
        for _ in range(64 << 4):
            writer.write(b"y" * (1 << 16))
            await writer.drain()
            sent += 1 << 16

    engine = Engine()
    async with asked(engine, talk) as post:
        answer = await post()
        await asyncio.sleep(0.2)
        assert answer._connection._buffered < BUFFERED_BYTES + (1 << 20)
        assert sent < 32 << 20
        total = 0
        while chunk := await answer.read():
            total += len(chunk)
        assert total == 64 << 20
        answer.close()


async def test_a_whole_answer_that_nobody_read_leaves_no_paused_connection_behind() -> None:
    size = 4 * BUFFERED_BYTES
    engine = Engine(OK + b"content-length: %d\r\n\r\n" % size + b"y" * size)
    async with asked(engine, first_byte_timeout_secs=2.0) as post:
        for _ in range(2):
            answer = await post()
            connection = answer._connection
            while not connection._complete and connection._buffered < BUFFERED_BYTES:
                await asyncio.sleep(0.001)
            connection.transport.resume_reading()
            while not connection._complete:
                await asyncio.sleep(0.001)
            connection.transport.pause_reading()  # as when the last of it came in one piece
            answer.close()
        answer = await post()
        assert len(await answer.read_all()) == size
        answer.close()


async def test_waits_have_their_own_ends_on_one_timer() -> None:
    gaps = [0.0, 0.15, 0.15, 0.15]

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            await reader.readuntil(b"\r\n\r\n")
            await reader.readexactly(2)
            writer.write(OK + b"content-length: 4\r\n\r\n")
            for gap in gaps:
                await asyncio.sleep(gap)
                writer.write(b"z")

    engine = Engine()
    async with asked(engine, talk, idle_timeout_secs=0.25) as post:
        for _ in range(2):  # a whole answer takes longer than one wait may, and the timer of the first one goes on
            answer = await post()
            assert await answer.read_all() == b"zzzz"
            answer.close()
        gaps[2] = 0.6
        with pytest.raises(EngineTimeout):
            await (await post()).read_all()


async def test_only_whole_heads_and_bodies_are_signs_of_life() -> None:
    """An engine that drips a head that never ends computes nothing."""
    head, body, sent = asyncio.Event(), asyncio.Event(), asyncio.Semaphore(0)

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n{}")
        for words, gate in (
            (b"HTTP/1.1 100 Continue\r\n\r\n" + OK + b"content-length: 3\r\nx: y", head),
            (b"\r\n\r\n", body),
            (b"abc", body),
        ):
            writer.write(words)
            await writer.drain()
            sent.release()
            await gate.wait()

    engine = Engine()
    async with running(engine, talk) as upstream:
        asking = asyncio.create_task(upstream.send(engine.url, "/v1/completions", b"", [], "r", [b"{}"]))
        await sent.acquire()
        await asyncio.sleep(0.02)
        assert upstream.heard() == []
        head.set()
        answer = await asking
        assert upstream.heard() == [engine.url]
        assert upstream.heard() == []
        body.set()
        assert await answer.read_all() == b"abc"
        assert upstream.heard() == [engine.url]
        answer.close()
