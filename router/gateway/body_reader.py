"""Reading the bodies of requests, large ones in a process of their own.

Parsing and hashing keep the interpreter busy: 10 MB of text for 0.1 s, an image of 20 MB for half a second. So a body
of LARGE_BYTES or more goes to a helper process through a pipe, and what comes back is small: what routing needs, and
how the body is changed for the engine. The helper is started with the first large body, reads one body after the other,
and ends when its standard input closes, whatever happens to the gateway.

    to the helper     length, pickle of (body, keywords of `parse_request`)
    from the helper   length, pickle of an OpenAIRequest, or of the error that `parse_request` raised

`python -m router.gateway.body_reader` is the helper.
"""

from __future__ import annotations

import asyncio
import logging
import os
import pickle
import struct
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any, BinaryIO

from router import descriptors
from router.errors import OutOfFiles, RequestError
from router.gateway.openai_request import OpenAIRequest, parse_request

log = logging.getLogger("leafcutter.gateway")

LARGE_BYTES = 1 << 17  # a body below this takes at most some 10 ms, if it consists of many small messages
LENGTH = struct.Struct("<Q")
PIPE_BYTES = 1 << 20  # so much is written to the pipe at a time


class BodyReader:
    """`parse_request` that never holds up other requests. Use it within `running()`."""

    def __init__(self) -> None:
        self._process: asyncio.subprocess.Process | None = None
        self._turn = asyncio.Lock()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        try:
            yield
        finally:
            await self._stop()

    async def read(self, body: bytes | bytearray, **about: Any) -> OpenAIRequest:
        """As `parse_request`, with its keywords. If the helper dies, the body is given to a new one once.

        Raises BadRequest, and OutOfFiles if no helper can be started.
        """
        if len(body) < LARGE_BYTES:
            return parse_request(body, **about)
        async with self._turn:
            try:
                answer = await self._ask(body, about)
            except (OSError, asyncio.IncompleteReadError) as error:
                log.warning("the reader of large bodies has died (%r); another one is started", error)
                await self._stop()
                if descriptors.exhausted(error):
                    raise OutOfFiles("The gateway has no file descriptor left.") from None
                answer = await self._ask(body, about)
            except asyncio.CancelledError:
                await self._stop()  # its answer would be taken for that to the next body
                raise
        if isinstance(answer, RequestError):
            raise answer
        assert isinstance(answer, OpenAIRequest), answer
        return answer

    async def _ask(self, body: bytes | bytearray, about: dict[str, Any]) -> object:
        if self._process is None:
            command = sys.executable, "-m", "router.gateway.body_reader"
            pipe = asyncio.subprocess.PIPE
            self._process = await asyncio.create_subprocess_exec(*command, stdin=pipe, stdout=pipe)
        writer, reader = self._process.stdin, self._process.stdout
        assert writer is not None, "it was started with pipes"
        assert reader is not None, "it was started with pipes"
        head = pickle.dumps(about)
        writer.write(LENGTH.pack(len(head)) + head + LENGTH.pack(len(body)))
        view = memoryview(body)
        for start in range(0, len(body), PIPE_BYTES):
            writer.write(view[start : start + PIPE_BYTES])
            await writer.drain()
        (length,) = LENGTH.unpack(await reader.readexactly(LENGTH.size))
        return pickle.loads(await reader.readexactly(length))

    async def _stop(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()
        if process.stdin is not None:
            process.stdin.close()


def serve(source: BinaryIO, sink: BinaryIO) -> None:
    """The helper: answer bodies from `source` until it ends."""
    while head := _take(source):
        about, body = pickle.loads(head), _take(source)
        answer: object
        try:
            answer = parse_request(body, **about)
        except RequestError as error:
            answer = error
        words = pickle.dumps(answer)
        sink.write(LENGTH.pack(len(words)) + words)
        sink.flush()


def _take(source: BinaryIO) -> bytes:
    """The next bytes that a length goes before; empty at the end."""
    length = source.read(LENGTH.size)
    return source.read(*LENGTH.unpack(length)) if len(length) == LENGTH.size else b""


if __name__ == "__main__":
    os.setpgrp()  # an interrupt from the keyboard is the gateway's: this process ends with its standard input
    serve(sys.stdin.buffer, sys.stdout.buffer)
