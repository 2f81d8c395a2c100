"""One request on a client's connection, and its answer: uvicorn's, but for what `client_connection` needs of it."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Coroutine
from typing import Any

from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

from router.gateway.client import Message

BEGINNING = b"HTTP/1.1 "  # of every answer
MOST_ZEROS = 8  # more might be too many for the parser of some client


class Turn(RequestResponseCycle):
    """One request and its answer."""

    early = False
    """The answer began before the request was complete."""
    unframed = False
    """The answer ends with the connection: HTTP/1.0 knows no chunks."""
    probed = 0
    """So many bytes of BEGINNING have been sent ahead."""
    zeros = 0
    """So many zeros have been sent ahead."""

    def send(self, message: Any) -> Coroutine[Any, Any, None]:
        if message["type"] == "http.response.start":
            message = self._begin(message)
        elif not message.get("more_body"):
            if self.unframed:
                self.expected_content_length = len(message.get("body", b""))
            if self.early:
                self.keep_alive = True  # the connection does not end at once: it lingers
        return super().send(message)

    def _begin(self, message: Message) -> Message:
        if self.probed:
            self.transport: Any = _Rest(self.transport, self.probed)
        headers = message.get("headers", ())
        if self.scope["http_version"] == "1.0" and all(name != b"content-length" for name, _ in headers):
            self.unframed, self.chunked_encoding, self.expected_content_length = True, False, sys.maxsize
        if self.more_body:
            self.early = True
            return {**message, "headers": [*headers, (b"connection", b"close")]}
        return message

    def probe(self) -> None:
        """Send one byte that belongs to the answer whatever comes, if there is one: of its beginning, or a zero that
        leads the size of its next chunk."""
        if not self.response_started:
            if self.probed < len(BEGINNING):
                self.transport.write(BEGINNING[self.probed : self.probed + 1])
                self.probed += 1
        elif self.chunked_encoding and not self.response_complete and self.zeros < MOST_ZEROS:
            self.transport.write(b"0")
            self.zeros += 1

    def gone(self) -> None:
        """The client has left, or its request cannot be read to its end."""
        self.disconnected = True
        self.message_event.set()


class _Rest:
    """A transport to which the first bytes of the next write have been written already. skip: how many."""

    def __init__(self, transport: asyncio.Transport, skip: int) -> None:
        self._transport, self._skip = transport, skip

    def write(self, data: bytes) -> None:
        self._transport.write(data[self._skip :])
        self._skip = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)
