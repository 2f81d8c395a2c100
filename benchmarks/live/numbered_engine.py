"""Engines for `endurance`: the chunks of their streams are numbered, and they send no faster than they are read.

    .venv/bin/python -m benchmarks.live.numbered_engine --hosts 127.0.0.1 127.0.0.2 --port 18000 --gap-s 0.1

How many chunks a stream has is the request's `max_tokens`. A request with `chunk_bytes` is answered with chunks of that
size, one after the other as fast as they are taken. As in vLLM, the usage comes last, if the request asks for it.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager

from benchmarks.live.instant_engine import engines_process, event
from benchmarks.live.lean_engine import STREAM_HEAD, EngineConnection, http_chunk, run_engines

DONE = b"data: [DONE]\n\n"
PROMPT_TOKENS = 512

_CHUNKS = re.compile(rb'"max_tokens": *(\d+)')
_CHUNK_BYTES = re.compile(rb'"chunk_bytes": *(\d+)')
_USAGE = re.compile(rb'"include_usage": *true')


def numbered(number: int, chunk_bytes: int = 0) -> bytes:
    """The event with this number, filled up to so many bytes."""
    head = b'data: {"id":"chatcmpl-1","model":"m","choices":[{"index":0,"delta":{"content":"%d ' % number
    end = b'"}}]}\n\n'
    return head + b"x" * (chunk_bytes - len(head) - len(end)) + end


def usage_event(chunks: int) -> bytes:
    return event({"choices": [], "usage": {"prompt_tokens": PROMPT_TOKENS, "completion_tokens": chunks}})


class NumberedConnection(EngineConnection):
    """One connection to an engine. An answer goes on when its next chunk is due and the others have been taken."""

    def __init__(self, gap_s: float) -> None:
        super().__init__(gap_s)
        self._pieces: Iterator[bytes] = iter(())
        self._paced, self._writable = True, True

    def chat(self, request: bytes) -> None:
        chunks, chunk_bytes = _CHUNKS.search(request), _CHUNK_BYTES.search(request)
        assert chunks, "the load says how many chunks it wants"
        self._paced = chunk_bytes is None
        size = int(chunk_bytes[1]) if chunk_bytes else 0
        self._pieces = _pieces(int(chunks[1]), size, bool(_USAGE.search(request)))
        self._go_on()

    def pause_writing(self) -> None:
        self._writable = False

    def resume_writing(self) -> None:
        self._writable = True
        if self._timer is None:
            self._go_on()

    def _go_on(self) -> None:
        self._timer = None
        while self._writable and not self._transport.is_closing() and (piece := next(self._pieces, None)):
            self._transport.write(piece)
            if self._paced:
                self._timer = self._loop.call_later(self._gap_s, self._go_on)
                return


def _pieces(chunks: int, chunk_bytes: int, usage: bool) -> Iterator[bytes]:
    last = (http_chunk(usage_event(chunks)) if usage else b"") + http_chunk(DONE) + b"0\r\n\r\n"
    for number in range(chunks):
        piece = http_chunk(numbered(number, chunk_bytes))
        yield (b"" if number else STREAM_HEAD) + piece + (last if number == chunks - 1 else b"")


@asynccontextmanager
async def numbered_engines(hosts: Sequence[str], port: int, *, gap_s: float) -> AsyncIterator[None]:
    """The engines in a process of their own, which listens when this begins."""
    async with engines_process(__spec__.name, hosts, port, "--gap-s", str(gap_s)):
        yield


if __name__ == "__main__":
    run_engines(__doc__, NumberedConnection, 0.1)
