"""One end of a connection that speaks the protocol: frames in, frames out, and the end of it told once.

What is sent during one turn of the event loop leaves in one write, because under load a system call costs more than
what it carries.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Generic, TypeVar, cast

import msgspec

from router.processes.protocol import Frames, FromEdge, FromRouter, ProtocolError, frame

log = logging.getLogger("leafcutter.processes")

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
            for content in self._frames.feed(data):
                self.receive(self._decode(content))
                if self._transport is None or self._transport.is_closing():
                    return
        except ProtocolError as error:
            self.cut(str(error))
        except (msgspec.DecodeError, ValueError, RecursionError) as error:
            self.cut(f"a malformed frame ({error})")

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 -- asyncio passes it
        self._transport = None
        self.lost()

    def _ignore(self, message: M) -> None:
        pass
