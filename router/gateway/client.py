"""The client's side of one request, over ASGI: reading its body, noticing that it leaves, and answering it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from contextlib import contextmanager, suppress
from typing import Any

from router.errors import EngineTimeout, GatewayFull, PayloadTooLarge, RequestError
from router.gateway import error_forms
from router.gateway.headers import Headers
from router.gateway.tenants import ANYONE, ClientKey

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

KEY = "leafcutter.client_key"
"""Where `front` puts the `ClientKey` into the scope."""
Body = bytes | bytearray
LAST_WORD_S = 1.0  # the time allowed for sending an error inside a stream


class ClientGone(Exception):
    """The client has left, so nobody waits for an answer. This exception never leaves the gateway."""


class BodyMemory:
    """The bodies of all requests that the gateway holds: no more than `most_bytes`. refused: gets the reason of each
    refusal."""

    def __init__(self, most_bytes: int, refused: Callable[[str], None]) -> None:
        self._most_bytes, self._refused = most_bytes, refused
        self.held_bytes = 0

    def take(self, size: int) -> None:
        """Hold so many bytes more. Raises GatewayFull, and then does not hold them."""
        if self.held_bytes + size > self._most_bytes:
            self._refused(GatewayFull.code)
            raise GatewayFull("The gateway holds as many bytes of requests as it may.", 1.0)
        self.held_bytes += size

    def give_back(self, size: int) -> None:
        self.held_bytes -= size


class Client:
    """One client.

    `raw_headers` has all headers in their order, and `headers` maps each lower-case name to its (last) value.
    """

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.raw_headers: Headers = scope["headers"]
        self.headers: dict[bytes, bytes] = dict(self.raw_headers)
        self.key: ClientKey = scope.get(KEY, ANYONE)
        """Who the client is."""
        self.started = False
        """Some of the answer has been sent."""
        self.gone = False
        """The client has left."""
        self.expired = False
        """The request has taken longer than its limit."""
        self.torn = False
        """What was written last ends inside an event of the stream."""
        self.held_bytes = 0
        """So many bytes of its body are counted in a `BodyMemory`."""
        self._receive, self._send = receive, send
        self._path: str = scope["path"]
        self._finished = False
        self._opening: Message | None = None
        self._streams, self._status = False, 0

    @property
    def status(self) -> int | None:
        """The status of the answer; None: it has not begun."""
        return self._status if self.started else None

    async def read_body(self, max_bytes: int, memory: BodyMemory | None = None) -> Body:
        """Read the whole body. Raises PayloadTooLarge as soon as the length is known, GatewayFull and ClientGone.

        memory: counts it, until the caller gives `held_bytes` back.
        """
        length = self.headers.get(b"content-length", b"")
        if length.isdigit() and int(length) > max_bytes:
            raise _too_large(max_bytes)
        body: Body = b""
        while True:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                self.gone = True
                raise ClientGone
            chunk = message.get("body", b"")
            if memory is not None:
                memory.take(len(chunk))
                self.held_bytes += len(chunk)
            if not body:
                body = chunk
            elif isinstance(body, bytes):
                body = bytearray(body) + chunk  # it grows in place: joining the chunks of a huge body takes long
            else:
                body += chunk
            if len(body) > max_bytes:
                raise _too_large(max_bytes)
            if not message.get("more_body", False):
                return body

    @contextmanager
    def waiting(self, limit_s: float) -> Iterator[None]:
        """Interrupt the work inside, wherever it waits, when the client leaves or the time limit is over.

        Raises ClientGone or EngineTimeout. Inside, both look like a cancellation of the task, so `finally` clauses run
        and connections close.
        """
        worker = asyncio.current_task()
        assert worker is not None, "an ASGI application runs in a task"
        watcher = asyncio.create_task(self._watch(worker))
        alarm = asyncio.get_running_loop().call_later(limit_s, self._expire, worker)
        try:
            yield
        except asyncio.CancelledError as cancelled:
            if not (self.gone or self.expired):  # another task has cancelled this one: the server shuts down
                raise
            worker.uncancel()
            # Its traceback holds the frame of the `with`, which holds it: a cycle of all that the request made.
            cancelled.__traceback__ = None
            raise (ClientGone if self.gone else EngineTimeout("The request took too long.")) from None
        finally:
            alarm.cancel()
            watcher.cancel()

    async def _watch(self, worker: asyncio.Task[Any]) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        if not (self._finished or self.expired):  # servers report a disconnect after a complete answer too
            self.gone = True
            worker.cancel()

    def _expire(self, worker: asyncio.Task[Any]) -> None:
        if not (self._finished or self.gone):
            self.expired = True
            worker.cancel()

    def open(self, status: int, headers: Headers, *, streams: bool = False) -> None:
        """Prepare the head of the answer. It leaves with the first bytes of the body; until then it can be replaced."""
        self._opening = {"type": "http.response.start", "status": status, "headers": headers}
        self._streams, self._status = streams, status

    async def write(self, chunk: bytes, *, last: bool = False) -> None:
        """Send bytes of the body, and before the first ones the head."""
        if self._opening is not None:
            opening, self._opening, self.started = self._opening, None, True
            await self._send(opening)
        await self._send({"type": "http.response.body", "body": chunk, "more_body": not last})
        self._finished = last

    async def reply(self, status: int, headers: Headers, body: bytes) -> None:
        """Send a whole answer at once."""
        self.open(status, [*headers, (b"content-length", b"%d" % len(body))])
        await self.write(body, last=True)

    async def fail(self, error: RequestError, headers: Headers) -> None:
        """Tell the client of `error`.

        The error is the answer if none has begun, and else an event of the stream, which then ends without its end
        mark. Its form is that of the API (`error_forms`). After a whole answer, nothing is sent.
        """
        if self._finished:
            return
        if not self.started:
            await self.reply(error.status, [*error.headers, *headers], error_forms.body(error, self._path))
        elif self._streams:
            with suppress(TimeoutError):  # `server.cut_off_stuck` ends a client that takes no more bytes
                async with asyncio.timeout(LAST_WORD_S):
                    event = error_forms.event(error, self._path)
                    await self.write(b"\n\n" + event if self.torn else event, last=True)


def _too_large(max_bytes: int) -> PayloadTooLarge:
    return PayloadTooLarge(f"The request body is larger than {max_bytes} bytes.")
