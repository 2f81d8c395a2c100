"""The client's side of one request, over ASGI: its body, its going away, and what is sent back to it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from contextlib import contextmanager, suppress
from typing import Any

from router.errors import EngineTimeout, PayloadTooLarge, RequestError
from router.gateway.headers import Headers

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

LAST_WORD_S = 1.0  # for an error told inside a stream


class ClientGone(Exception):
    """The client has left; nobody waits for an answer. Never leaves the gateway."""


class Client:
    """`headers` maps lower-case names to values (the last of equal names); `raw_headers` has them all, in order."""

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.raw_headers: Headers = scope["headers"]
        self.headers: dict[bytes, bytes] = dict(self.raw_headers)
        self.started = False
        """Something of the answer has been sent."""
        self.gone = False
        self.expired = False
        """The whole request took too long."""
        self.torn = False
        """What was written last ends inside an event."""
        self._receive, self._send = receive, send
        self._finished = False
        self._opening: Message | None = None
        self._streams = False

    async def read_body(self, most_bytes: int) -> bytes:
        """The whole body. Raises PayloadTooLarge, as early as the length is known, and ClientGone."""
        length = self.headers.get(b"content-length", b"")
        chunks, size = [], int(length) if length.isdigit() else 0
        if size > most_bytes:
            raise _too_large(most_bytes)
        size, more = 0, True
        while more:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                self.gone = True
                raise ClientGone
            chunks.append(message.get("body", b""))
            size += len(chunks[-1])
            if size > most_bytes:
                raise _too_large(most_bytes)
            more = message.get("more_body", False)
        return chunks[0] if len(chunks) == 1 else b"".join(chunks)

    @contextmanager
    def waiting(self, most_s: float) -> Iterator[None]:
        """Interrupts the work inside, wherever it waits, when the client leaves (ClientGone) or after `most_s` seconds
        (EngineTimeout). Inside, both look like a cancellation: `finally` clauses run, connections close.
        """
        worker = asyncio.current_task()
        assert worker is not None, "an ASGI application runs in a task"
        watcher = asyncio.create_task(self._watch(worker))
        alarm = asyncio.get_running_loop().call_later(most_s, self._expire, worker)
        try:
            yield
        except asyncio.CancelledError:
            if not (self.gone or self.expired):  # somebody else cancels us: the server shuts down
                raise
            worker.uncancel()
            raise (ClientGone if self.gone else EngineTimeout("The request took too long.")) from None
        finally:
            alarm.cancel()
            watcher.cancel()

    async def _watch(self, worker: asyncio.Task[Any]) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        if not (self._finished or self.expired):  # servers tell a disconnect after a complete answer too
            self.gone = True
            worker.cancel()

    def _expire(self, worker: asyncio.Task[Any]) -> None:
        if not (self._finished or self.gone):
            self.expired = True
            worker.cancel()

    def open(self, status: int, headers: Headers, *, streams: bool = False) -> None:
        """Prepares the head of the answer; it leaves with the first bytes of the body, until when all can be undone."""
        self._opening = {"type": "http.response.start", "status": status, "headers": headers}
        self._streams = streams

    async def write(self, chunk: bytes, *, last: bool = False) -> None:
        if self._opening is not None:
            opening, self._opening, self.started = self._opening, None, True
            await self._send(opening)
        await self._send({"type": "http.response.body", "body": chunk, "more_body": not last})
        self._finished = last

    async def reply(self, status: int, headers: Headers, body: bytes) -> None:
        """A whole answer at once."""
        self.open(status, [*headers, (b"content-length", b"%d" % len(body))])
        await self.write(body, last=True)

    async def fail(self, error: RequestError, headers: Headers) -> None:
        """Tells the client of `error`: as the answer if there was none yet; else as an event of the stream, which then
        ends without [DONE]. Behind a whole answer there is nothing to tell."""
        if self._finished:
            return
        if not self.started:
            await self.reply(error.status, [*error.headers, *headers], error.body())
        elif self._streams:
            with suppress(TimeoutError):  # a client that takes no more bytes is cut off by the server after us
                async with asyncio.timeout(LAST_WORD_S):
                    await self.write((b"\n\n" if self.torn else b"") + b"data: " + error.body() + b"\n\n", last=True)


def _too_large(most_bytes: int) -> PayloadTooLarge:
    return PayloadTooLarge(f"The request body is larger than {most_bytes} bytes.")
