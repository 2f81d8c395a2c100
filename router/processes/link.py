"""One end of a connection that speaks the protocol: frames in, frames out, and the end of it told once.

What is sent during one turn of the event loop leaves in one write, because under load a system call costs more than
what it carries. What arrives is taken in TURN_MESSAGES at a time, and everything else that is due has its turn in
between: many requests may come at once, and placing one takes 0.1 ms.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar, cast

import msgspec

from router.processes.protocol import Frames, FromEdge, FromRouter, ProtocolError, frame

log = logging.getLogger("leafcutter.processes")
TURN_MESSAGES = 8
"""The most messages of one connection that are taken in during one turn of the event loop."""

M = TypeVar("M")


class Link(asyncio.Protocol, Generic[M]):
    """One end. decoder: of the messages that the peer may send. A peer that breaks a rule is cut off and logged."""

    def __init__(self, decoder: msgspec.msgpack.Decoder[M]) -> None:
        self.peer = "a peer"
        """Who is at the other end, for the log."""
        self.receive: Callable[[M], None] = self._ignore
        """Takes each message that arrives. It may raise ProtocolError."""
        self.lost: Callable[[], None] = lambda: None
        """Called once, when the connection has ended."""
        self._decode = decoder.decode
        self._frames = Frames()
        self._waiting: deque[bytes] = deque()
        """Frames that have arrived and not been taken in. While there are any, no more are read."""
        self._transport: asyncio.Transport | None = None
        self._out: list[bytes] = []

    def send(self, message: FromEdge | FromRouter) -> None:
        """Send a message at the end of this turn of the event loop. Nothing happens once the connection has ended.

        Raises ProtocolError if the message is too long.
        """
        if self._transport is not None:
            if not self._out:
                asyncio.get_running_loop().call_soon(self.flush)
            self._out.append(frame(message))

    def flush(self) -> None:
        """Send what waits to be sent."""
        if self._out and self._transport is not None:
            self._transport.write(b"".join(self._out))
        self._out.clear()

    def cut(self, reason: str) -> None:
        """End the connection at once. reason: for the log."""
        log.warning("cut off %s: %s", self.peer, reason)
        self._waiting.clear()
        if self._transport is not None:
            self._transport.abort()

    def close(self) -> None:
        """End the connection after what waits has been sent."""
        self.flush()
        if self._transport is not None:
            self._transport.close()

    # --- asyncio.Protocol ---------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        try:
            self._waiting += self._frames.feed(data)
        except ProtocolError as error:
            return self.cut(str(error))
        self._take_in()
        if self._waiting and self._transport is not None:
            self._transport.pause_reading()
            asyncio.get_running_loop().call_soon(self._go_on)

    def _go_on(self) -> None:
        """In a later turn of the event loop: take in what waits."""
        if self._transport is None:
            return
        self._take_in()
        if self._waiting:
            asyncio.get_running_loop().call_soon(self._go_on)
        elif not self._transport.is_closing():
            self._transport.resume_reading()

    def _take_in(self) -> None:
        """Pass on the messages of a turn. Nothing that waits is passed on once the connection is closing."""
        try:
            for _ in range(min(TURN_MESSAGES, len(self._waiting))):
                self.receive(self._decode(self._waiting.popleft()))
                if self._transport is None or self._transport.is_closing():
                    return self._waiting.clear()
        except ProtocolError as error:
            self.cut(str(error))
        except (msgspec.DecodeError, ValueError, RecursionError) as error:
            self.cut(f"a malformed frame ({error})")

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 -- asyncio passes it
        self._transport = None
        self._waiting.clear()
        self.lost()

    def _ignore(self, message: M) -> None:
        pass
