"""Engines for `chaos`: they are well, or fail every request in the way that they were last told to.

    .venv/bin/python -m benchmarks.live.chaos_engine --hosts 127.0.0.1 --port 18000
    curl -X POST http://127.0.0.1:18000/fault/reset-middle

When they are well, streams are those of `numbered_engine` and other answers those of `lean_engine`. Health checks pass
whatever the fault is: an engine that fails those is one whose process is stopped or killed.
"""

from __future__ import annotations

import re
import socket
import struct
from collections.abc import Callable
from itertools import chain, repeat

from benchmarks.live.lean_engine import STREAM_HEAD, EngineConnection, http_chunk, response, run_engines
from benchmarks.live.numbered_engine import DONE, NumberedConnection, numbered

GAP_S = 0.01  # between the chunks of a stream
DRIP_S = 0.5  # between the bytes of an engine that drips
WHOLE_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 1000\r\n\r\n"
GARBAGE = b"SSH-2.0-OpenSSH_9.6\r\n"
OVERSIZED = b"HTTP/1.1 200 OK\r\nx: " + b"y" * 3_000_000
STATUSES = {429: "Too Many Requests", 500: "Internal Server Error", 502: "Bad Gateway", 503: "Service Unavailable"}

_STREAM = re.compile(rb'"stream": *true')
_CHUNKS = re.compile(rb'"max_tokens": *(\d+)')
_fault = ""
"""What all engines of this process do with requests; empty: they are well."""


class ChaosConnection(NumberedConnection):
    """One connection to an engine that may be told to fail."""

    def _answer(self, request: bytes) -> None:
        global _fault
        if request.startswith(b"POST /fault/"):
            _fault = request.split(b" ", 2)[1].removeprefix(b"/fault/").decode()
            self._transport.write(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
        elif request.startswith(b"POST /") and _fault:
            FAULTS[_fault](self, request)
        else:
            super()._answer(request)

    def chat(self, request: bytes) -> None:
        if _STREAM.search(request):
            super().chat(request)
        else:
            EngineConnection.chat(self, request)

    def send_and_reset(self, *pieces: bytes) -> None:
        """Send these pieces one by one, and then reset the connection."""
        if self._transport.is_closing():
            return
        if not pieces:
            return self.reset()
        self._transport.write(pieces[0])
        self._timer = self._loop.call_later(self._gap_s, self.send_and_reset, *pieces[1:])

    def reset(self) -> None:
        sock: socket.socket = self._transport.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._transport.abort()

    def send_and_close(self, data: bytes) -> None:
        self._transport.write(data)
        self._transport.close()

    def send_without_end(self, head: bytes, chunk: bytes) -> None:
        self._pieces, self._paced = chain((head,), repeat(chunk)), True
        self._go_on()

    def drip(self, data: bytes) -> None:
        if not self._transport.is_closing():
            self._transport.write(data[:1])
            self._timer = self._loop.call_later(DRIP_S, self.drip, data[1:])


def _stream(request: bytes) -> list[bytes]:
    """The head of a stream, its chunks, and its end mark."""
    found = _CHUNKS.search(request)
    chunks = (http_chunk(numbered(number)) for number in range(int(found[1]) if found else 1))
    return [STREAM_HEAD, *chunks, http_chunk(DONE)]


def _break_off(stream_pieces: Callable[[int], int], whole: bytes) -> Fault:
    """Send a part of the answer and reset. stream_pieces: how many pieces to send of a stream of so many. whole: what
    is sent of other answers."""

    def fault(connection: ChaosConnection, request: bytes) -> None:
        pieces = _stream(request) if _STREAM.search(request) else [whole]
        connection.send_and_reset(*pieces[: stream_pieces(len(pieces))])

    return fault


def _refuse(status: int) -> Fault:
    body = b'{"error":{"message":"out of order","type":"server_error","code":%d}}' % status
    answer = response(f"{status} {STATUSES[status]}".encode(), body)
    return lambda connection, _: connection._transport.write(answer)


def _unanswered(connection: ChaosConnection, request: bytes) -> None:
    """Nothing is ever sent."""


Fault = Callable[[ChaosConnection, bytes], None]
FAULTS: dict[str, Fault] = {
    **{f"status-{status}": _refuse(status) for status in STATUSES},
    "reset-before-head": lambda connection, _: connection.reset(),
    "reset-after-head": _break_off(lambda _: 1, WHOLE_HEAD),
    "reset-middle": _break_off(lambda pieces: pieces // 2 + 1, WHOLE_HEAD + b'{"choices": ['),
    "reset-before-end": _break_off(lambda pieces: max(1, pieces - 1), WHOLE_HEAD + b'{"choices": []'),
    "reset-after-end": _break_off(lambda pieces: pieces, WHOLE_HEAD + b'{"choices": []}'),
    "wedged": _unanswered,
    "garbage": lambda connection, _: connection.send_and_close(GARBAGE),
    "oversized-head": lambda connection, _: connection.send_and_close(OVERSIZED),
    "endless": lambda connection, _: connection.send_without_end(STREAM_HEAD, http_chunk(numbered(0))),
    "dripping": lambda connection, _: connection.drip(OVERSIZED[:10_000]),
}


if __name__ == "__main__":
    run_engines(__doc__, ChaosConnection, GAP_S)
