"""Engines that answer at once, and cost next to nothing: for comparing routers that are faster than a web framework.

`instant_engine.py` runs on aiohttp and spends 150 us of CPU on a chat of 2 kB, and more on a long one: a good part of
what is measured around a router of 300 us. Here a request is bytes that are counted and never parsed, and most of an
answer was made beforehand: 30 us. How many chunks a stream has is the request's `max_tokens`.

As vLLM does, an engine tells at `/v1/chat/completions/render` which tokens a chat has: vLLM's router asks every engine
for that before it chooses one by its cache. The tokens are a stand-in, one for each four bytes, and found without the
time that a tokenizer takes.

    .venv/bin/python -m benchmarks.live.lean_engine --hosts 127.0.0.1 127.0.0.2 --port 18000
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from functools import lru_cache
from typing import Any, cast

import uvloop

from benchmarks.live.instant_engine import TEXT, engines_process, event

CACHED_TOKENS = 256
"""The part of a prompt that is said to have been in the cache: that which `lean_load.py` shares."""
BYTES_PER_TOKEN = 4
DEFAULT_CHUNKS = 16
RENDERED_BYTES = 256

_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_MAX_TOKENS = re.compile(rb'"max_tokens": *(\d+)')
_STREAM = re.compile(rb'"stream": *true')
STREAM_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
_MODELS = json.dumps({"object": "list", "data": [{"id": "m", "object": "model", "owned_by": "vllm"}]}).encode()


def http_chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def response(status: bytes, body: bytes) -> bytes:
    return b"HTTP/1.1 %b\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (status, len(body), body)


def _usage(request: bytes, tokens: int) -> dict[str, Any]:
    cached = {"cached_tokens": CACHED_TOKENS}
    prompt = len(request) // BYTES_PER_TOKEN
    return {"prompt_tokens": prompt, "completion_tokens": tokens, "prompt_tokens_details": cached}


_PIECE = http_chunk(event({"id": "chatcmpl-1", "model": "m", "choices": [{"index": 0, "delta": {"content": " word"}}]}))


@lru_cache(maxsize=4096)
def _token_ids(block: bytes) -> bytes:
    return b",".join(b"%d" % (block[at] << 8 | block[at + 1]) for at in range(0, len(block) - 1, BYTES_PER_TOKEN))


def _rendered(body: bytes) -> bytes:
    """The tokens of a request. What requests have in common is found by its blocks, so that only the rest is work."""
    blocks = [body[start : start + RENDERED_BYTES] for start in range(0, len(body) - 1, RENDERED_BYTES)]
    ids = b",".join(map(_token_ids, blocks))
    return b'{"request_id":"render-1","token_ids":[%b],"model":"m","sampling_params":{}}' % ids


class EngineConnection(asyncio.Protocol):
    """One connection to an engine with one model, `m`. Requests come one after the other, with their length."""

    def __init__(self, gap_s: float) -> None:
        self._gap_s = gap_s
        self._loop = asyncio.get_running_loop()
        self._request, self._whole_bytes = bytearray(), 0
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.WriteTransport, transport)

    def connection_lost(self, _: Exception | None) -> None:
        if self._timer:
            self._timer.cancel()

    def data_received(self, data: bytes) -> None:
        self._request += data
        if not self._whole_bytes:
            head_bytes = self._request.find(b"\r\n\r\n") + 4
            if head_bytes < 4:
                return
            length = _LENGTH.search(self._request, 0, head_bytes)
            self._whole_bytes = head_bytes + (int(length[1]) if length else 0)
        if len(self._request) >= self._whole_bytes:
            request, self._request, self._whole_bytes = bytes(self._request), bytearray(), 0
            self._answer(request)

    def _answer(self, request: bytes) -> None:
        if request.startswith(b"POST /v1/chat/completions "):
            self.chat(request)
        elif request.startswith(b"POST /v1/chat/completions/render "):
            self._transport.write(response(b"200 OK", _rendered(request.partition(b"\r\n\r\n")[2])))
        elif request.startswith((b"GET /health ", b"GET /v1/models ")):
            self._transport.write(response(b"200 OK", _MODELS))
        else:
            self._transport.write(response(b"404 Not Found", b'{"error": {"message": "unknown", "code": 404}}'))

    def chat(self, request: bytes) -> None:
        if _STREAM.search(request):
            found = _MAX_TOKENS.search(request)
            chunks = int(found[1]) if found else DEFAULT_CHUNKS
            end = http_chunk(event({"choices": [], "usage": _usage(request, chunks)}) + b"data: [DONE]\n\n")
            self._stream(STREAM_HEAD, chunks, end + b"0\r\n\r\n")
        else:
            choice = {"index": 0, "message": {"role": "assistant", "content": TEXT}}
            body = {"model": "m", "choices": [choice], "usage": _usage(request, DEFAULT_CHUNKS)}
            self._transport.write(response(b"200 OK", json.dumps(body).encode()))

    def _stream(self, head: bytes, chunks: int, end: bytes) -> None:
        if chunks > 1:
            self._transport.write(head + _PIECE)
            self._timer = self._loop.call_later(self._gap_s, self._stream, b"", chunks - 1, end)
        else:
            self._transport.write(head + _PIECE + end)


@asynccontextmanager
async def lean_engines(hosts: Sequence[str], port: int, *, gap_s: float) -> AsyncIterator[int]:
    """The engines in a process of their own, which listens when this begins. Gives its id."""
    async with engines_process(__spec__.name, hosts, port, "--gap-s", str(gap_s)) as pid:
        yield pid


def run_engines(about: str | None, connection: Callable[[float], asyncio.Protocol], gap_s: float) -> None:
    """The command of a module that plays engines. about: its docstring. connection: makes the protocol of a connection,
    given the seconds between chunks, of which gap_s is the default."""
    parser = argparse.ArgumentParser(description=(about or "").split("\n")[0])
    parser.add_argument("--hosts", nargs="+", required=True, help="loopback addresses, one for each engine")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--gap-s", type=float, default=gap_s, help="seconds between the chunks of a stream")
    args = parser.parse_args()

    async def serve() -> None:
        loop = asyncio.get_running_loop()
        server = await loop.create_server(lambda: connection(args.gap_s), args.hosts, args.port, backlog=1024)
        await server.serve_forever()

    uvloop.run(serve())


if __name__ == "__main__":
    run_engines(__doc__, EngineConnection, 0.0)
