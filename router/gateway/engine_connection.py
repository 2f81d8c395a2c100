"""One HTTP/1.1 connection to an engine. It carries one request at a time and parses the answers with httptools.

Why not a general HTTP client: with one, sending a request and reading its answer took a quarter of the gateway's CPU
(benchmarks/live/overhead.py). This connection does only what the data path needs, so three things are cheap: the head
of a request is a few joined bytes, the bytes of an answer pass on as they arrive, and one timer serves all waits. The
timer is not set anew for each wait: it fires at the earliest time that was ever asked for, and is set again if what is
awaited now may take longer.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from time import monotonic
from typing import cast

import httptools

from router.errors import EngineGarbled, EngineLost, EngineOut, EngineTimeout
from router.gateway.body_edit import Piece
from router.gateway.headers import Headers

HEAD_BYTES = 1 << 16  # the most bytes of names and values in the head of an answer
BARE_BYTES = 2 * HEAD_BYTES  # the most in a row that bring nothing of a body: heads, trailers, extensions of chunks
BUFFERED_BYTES = 1 << 18  # reading stops while so much of an answer waits to be passed on
PIECE_BYTES = 1 << 18  # a large body is sent in pieces, and waits in between until the engine has taken what was sent
LOST = "The connection to the engine was lost."


class EngineConnection(asyncio.Protocol):
    """Used in this order, again and again: `send`, `read` until it returns nothing, `done`.

    release: called when the connection is idle and can be used for another request. forget: called when it is closed.
    """

    transport: asyncio.Transport

    def __init__(self, release: Callable[[EngineConnection], None], forget: Callable[[EngineConnection], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._release, self._forget = release, forget
        # The parser and the connection refer to each other until the connection is closed.
        self._parser: httptools.HttpResponseParser | None = httptools.HttpResponseParser(self)
        self._waiter: asyncio.Future[None] | None = None  # of the task that waits for the engine
        self._timer: asyncio.TimerHandle | None = None
        self._due_s = float("inf")  # when what is awaited now must have come, or this idle connection is closed
        self._idle = False
        self._writable = True
        self.closed = False
        self.heard = False
        """A head or a part of a body has come since this was last set to False. The bytes of a head that never ends are
        no sign of life."""
        self._fault: str | None = None  # what in the answer was not valid HTTP
        self.waited_s = 0.0
        """How long the present request has waited for the engine: until bytes came, not until they were looked at."""
        self._waits_s = 0.0  # since when it waits now
        self.status = 0
        self.headers: Headers = []
        """The head of the answer, with names in lower case."""
        self._begin()
        self._complete = True  # nothing may come before a request was sent

    def _begin(self) -> None:
        self._answered = self._complete = self._framed = self._keeps_alive = self._sent = False
        self._body_begun = False
        self._head_bytes = self._buffered = self._bare_bytes = 0
        self._chunks: list[bytes] = []

    # --- one request ------------------------------------------------------------------------------------------------

    async def send(self, head: bytes, body: Sequence[Piece], due_s: float) -> None:
        """Send a request and wait for the head of its answer. Raises EngineLost, and EngineTimeout at due_s, seconds on
        the clock of the event loop."""
        self._begin()
        self._idle, self.headers, self.waited_s = False, [], 0.0
        if len(body) == 1 and len(body[0]) <= PIECE_BYTES:
            self.transport.write(b"".join((head, *body)))
            self._sent = True
        else:
            self._sent = await self._send_pieces(head, body, due_s)
        while not self._answered:
            await self._something_by(due_s)

    async def _send_pieces(self, head: bytes, body: Sequence[Piece], due_s: float) -> bool:
        """Return whether everything was sent. An engine that answers before, as with an error, gets no more."""
        self.transport.write(head)
        views = [memoryview(each) for each in body]
        for piece in (view[at : at + PIECE_BYTES] for view in views for at in range(0, len(view), PIECE_BYTES)):
            self.transport.write(piece)
            if not self._writable:
                while not (self._writable or self._answered):
                    await self._something_by(due_s)
            else:
                await asyncio.sleep(0)
            if self._answered:
                return False
        return True

    async def read(self, due_s: float) -> bytes:
        """The next bytes of the body; empty at its end. Raises EngineLost, and EngineTimeout at due_s."""
        while not (self._chunks or self._complete):
            await self._something_by(due_s)
        chunks = self._chunks
        if not chunks:
            return b""
        self._chunks = []
        if self._buffered >= BUFFERED_BYTES and not self.closed:
            self.transport.resume_reading()
        self._buffered = 0
        return chunks[0] if len(chunks) == 1 else b"".join(chunks)

    def done(self) -> None:
        """Nobody reads any further. The connection is kept if the answer was whole and has been read, or else closed,
        which stops the engine's work. With much of an answer unread, reading is paused: the next request would hang."""
        if self.closed:
            return
        if self._complete and self._keeps_alive and self._sent and not self._chunks:
            self._release(self)
        else:
            self.abort()

    def expire_at(self, due_s: float) -> None:
        """Close this idle connection at due_s unless it is used again."""
        self._due_s, self._idle = due_s, True
        if self._timer is None or self._timer.when() > due_s:
            self._set_timer()

    def give_up(self) -> None:
        """The engine was taken out: what waits for the first byte of a body gets EngineOut."""
        if not self._body_begun and self._waiter is not None and not self._waiter.done():
            self._waiter.set_exception(EngineOut("The engine was taken out."))

    def abort(self) -> None:
        """Close the connection at once."""
        self.transport.abort()
        self._lose()

    def _something_by(self, due_s: float) -> asyncio.Future[None]:
        """What to await until something happens on the connection. Raises EngineLost."""
        if self._fault is not None:
            raise EngineGarbled(f"The engine's answer is not valid HTTP: {self._fault}.")
        if self.closed:
            raise EngineLost(LOST)
        self._due_s = due_s
        if self._timer is None or self._timer.when() > due_s:
            self._set_timer()
        self._waiter = waiter = self._loop.create_future()
        self._waits_s = monotonic()
        return waiter

    # --- the timer --------------------------------------------------------------------------------------------------

    def _set_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_at(self._due_s, self._look_at_the_clock)

    def _look_at_the_clock(self) -> None:
        self._timer = None
        waiter = self._waiter if self._waiter is not None and not self._waiter.done() else None
        if waiter is None and not self._idle:
            return
        if self._loop.time() < self._due_s:
            self._set_timer()
        elif waiter is not None:
            waiter.set_exception(EngineTimeout("The engine did not answer in time."))
        else:
            self.abort()

    # --- what comes from the engine ---------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        if self._parser is None:
            return
        if self._complete:  # nothing was asked for
            self.abort()
            return
        self._bare_bytes += len(data)
        try:
            self._parser.feed_data(data)
            if self._bare_bytes > BARE_BYTES:
                raise httptools.HttpParserError("its head, or what follows its body, has no end")
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            self._fault = str(error.__context__ or error)
            self.abort()
        self._wake()

    def eof_received(self) -> None:
        """The transport closes by itself after this."""

    def connection_lost(self, exc: Exception | None) -> None:
        if exc is None and self._answered and not self._framed:
            self._complete = True  # the end of the connection is the end of the body
        self._lose()

    def pause_writing(self) -> None:
        self._writable = False

    def resume_writing(self) -> None:
        self._writable = True
        self._wake()

    def on_message_begin(self) -> None:
        if self._complete:
            raise ValueError("a second answer to one request")

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._answered:  # a trailer
            return
        self._head_bytes += len(name) + len(value)
        if self._head_bytes > HEAD_BYTES:
            raise ValueError("the head of the answer is too large")
        name = name.lower()
        self._framed = self._framed or name in (b"content-length", b"transfer-encoding")
        self.headers.append((name, value))

    def on_headers_complete(self) -> None:
        assert self._parser is not None
        self.status = self._parser.get_status_code()
        if not 100 <= self.status <= 599 or self.status == 101:
            raise ValueError(f"status {self.status}")
        if self.status >= 200:
            self._answered = self.heard = True

    def on_body(self, body: bytes) -> None:
        self._chunks.append(body)
        self._body_begun = self.heard = True
        self._bare_bytes = 0
        before, self._buffered = self._buffered, self._buffered + len(body)
        if before < BUFFERED_BYTES <= self._buffered and not self.closed:
            self.transport.pause_reading()

    def on_message_complete(self) -> None:
        assert self._parser is not None
        if self.status < 200:  # such as 100 Continue: the answer is still to come
            self.headers, self._head_bytes, self._framed = [], 0, False
            return
        self._complete, self._keeps_alive = True, self._parser.should_keep_alive()

    def _lose(self) -> None:
        if self.closed:
            return
        self.closed, self._parser = True, None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._forget(self)
        self._wake()
        self._waiter = None  # an error in it would refer to the frames of the request, and these to this connection

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
            self.waited_s += monotonic() - self._waits_s
