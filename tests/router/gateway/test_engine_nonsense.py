"""Whatever bytes an engine sends, in whatever pieces: a clean answer or a clean error, and never a hang."""

from __future__ import annotations

import asyncio
import re
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from router.errors import EngineLost
from router.gateway.engine_connection import BARE_BYTES, HEAD_BYTES, EngineConnection

TOKEN = re.compile(rb"[!#$%&'*+.^_`|~0-9a-z-]+")
PARTS = st.sampled_from(
    [
        b"HTTP/1.1 ",
        b"HTTP/1.0 ",
        b"200 OK\r\n",
        b"204 None\r\n",
        b"100 Continue\r\n\r\n",
        b"101 Switching Protocols\r\n",
        b"999 No\r\n",
        b"302 Found\r\n",
        b"content-length: 5\r\n",
        b"content-length: 0\r\n",
        b"Content-Length: -1\r\n",
        b"transfer-encoding: chunked\r\n",
        b"Transfer-Encoding: gzip, chunked\r\n",
        b"connection: close\r\n",
        b"upgrade: h2c\r\n",
        b"x: a\r\n b\r\n",
        b"\r\n",
        b"\n",
        b"\r",
        b"5\r\nhello\r\n",
        b"5;x=y\r\nhello\r\n",
        b"0\r\n",
        b"hello",
        b"\x00\xff",
    ]
)
ANSWERS = st.lists(PARTS | st.binary(max_size=8), max_size=30)


class StubTransport:
    """The engine's side of a connection, without a socket."""

    def __init__(self, connection: EngineConnection) -> None:
        self._connection, self._closing = connection, False

    def write(self, data: bytes) -> None:
        pass

    def is_closing(self) -> bool:
        return self._closing

    def pause_reading(self) -> None:
        pass

    resume_reading = pause_reading

    def abort(self) -> None:
        if not self._closing:
            self._closing = True
            asyncio.get_running_loop().call_soon(self._connection.connection_lost, None)


def connect() -> tuple[EngineConnection, list[EngineConnection]]:
    """A connection, and the list into which it goes if it may be used again."""
    kept: list[EngineConnection] = []
    connection = EngineConnection(kept.append, lambda _: None)
    transport: Any = StubTransport(connection)
    connection.connection_made(transport)
    return connection, kept


async def ask(connection: EngineConnection) -> bytes:
    due_s = asyncio.get_running_loop().time() + 60
    await connection.send(b"POST / HTTP/1.1\r\n\r\n", (b"",), due_s)
    body = b""
    while chunk := await connection.read(due_s):
        body += chunk
    return body


@settings(max_examples=500)
@given(ANSWERS, st.integers(1, 40))
async def test_any_bytes_are_an_answer_or_an_error(words: list[bytes], size: int) -> None:
    connection, kept = connect()
    asking = asyncio.create_task(ask(connection))
    await asyncio.sleep(0)
    sent = b"".join(words)
    for start in range(0, len(sent), size):
        if connection.closed:
            break
        connection.data_received(sent[start : start + size])
    connection.connection_lost(None)
    try:
        body = await asking
    except EngineLost:
        assert not kept
        return
    assert 200 <= connection.status <= 599
    assert all(TOKEN.fullmatch(name) and not re.search(rb"[\r\n\0]", value) for name, value in connection.headers)
    assert all(part in sent for part in body.splitlines())


async def test_a_connection_on_which_nonsense_came_is_not_used_again() -> None:
    connection, kept = connect()
    asking = asyncio.create_task(ask(connection))
    await asyncio.sleep(0)
    connection.data_received(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nokHTTP/1.1 200 OK\r\n")
    assert await asking == b"ok"
    connection.done()
    assert connection.closed
    assert not kept


async def test_bytes_that_bring_no_body_are_bounded_wherever_they_come() -> None:
    begin = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
    for first, endless in [
        (b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
        (b"HTTP/1.1 200 OK\r\nx: ", b"y"),
        (b"HTTP/1.1 200 OK\r\n", b"x: y\r\n"),
        (begin + b"5;", b"x=y;"),
        (begin + b"5\r\nhello\r\n0\r\n", b"x: y\r\n"),
        (begin + b"5\r\nhello\r\n0\r\nx: ", b"y"),
    ]:
        connection, _ = connect()
        asking = asyncio.create_task(ask(connection))
        await asyncio.sleep(0)
        connection.data_received(first)
        sent = 0
        while not connection.closed:
            connection.data_received(endless * 100)
            sent += len(endless) * 100
            assert sent <= BARE_BYTES + HEAD_BYTES
        error = (await asyncio.gather(asking, return_exceptions=True))[0]
        assert isinstance(error, EngineLost)
