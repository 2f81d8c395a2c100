"""Engines that answer at once with a fixed completion, so that whatever a request costs is the gateway's.

One process plays any number of engines, each on a loopback address of its own:

    .venv/bin/python -m benchmarks.live.instant_engine --hosts 127.0.0.1 127.0.0.2 --port 18000
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
from aiohttp import web

TEXT = "Paris is the capital of France."
PROMPT_TOKENS, CACHED_TOKENS = 600, 320
POLL_S = 0.05


def event(body: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(body).encode() + b"\n\n"


def create_engine(chunks: int, gap_s: float) -> web.Application:
    """An engine with one model, `m`. Its streams have `chunks` pieces of a token each, `gap_s` seconds apart."""
    cached = {"cached_tokens": CACHED_TOKENS}
    usage = {"prompt_tokens": PROMPT_TOKENS, "completion_tokens": chunks, "prompt_tokens_details": cached}
    whole = {"choices": [{"index": 0, "message": {"role": "assistant", "content": TEXT}}], "usage": usage}
    piece = event({"id": "chatcmpl-1", "model": "m", "choices": [{"index": 0, "delta": {"content": " word"}}]})
    last = event({"choices": [], "usage": usage}) + b"data: [DONE]\n\n"

    async def chat(request: web.Request) -> web.StreamResponse:
        if not (await request.json()).get("stream"):
            return web.json_response(whole)
        answer = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await answer.prepare(request)
        for _ in range(chunks):
            await answer.write(piece)
            if gap_s:
                await asyncio.sleep(gap_s)
        await answer.write(last)
        return answer

    async def models(_: web.Request) -> web.Response:
        return web.json_response({"data": [{"id": "m"}]})

    app = web.Application()
    app.router.add_post("/v1/chat/completions", chat)
    app.router.add_get("/v1/models", models)
    app.router.add_get("/health", models)
    return app


@asynccontextmanager
async def instant_engines(hosts: Sequence[str], port: int, *, chunks: int, gap_s: float = 0.0) -> AsyncIterator[None]:
    """The engines in a process of their own, which listens when this begins."""
    async with engines_process(__spec__.name, hosts, port, "--chunks", str(chunks), "--gap-s", str(gap_s)):
        yield


@asynccontextmanager
async def engines_process(module: str, hosts: Sequence[str], port: int, *flags: str) -> AsyncIterator[int]:
    """A module that plays an engine on each host, as a process that listens when this begins. Gives its id."""
    command = ["-m", module, "--hosts", *hosts, "--port", str(port), *flags]
    process = await asyncio.create_subprocess_exec(sys.executable, *command)
    try:
        await _listening(process, f"http://{hosts[-1]}:{port}/health")
        yield process.pid
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()


async def _listening(process: asyncio.subprocess.Process, url: str) -> None:
    async with aiohttp.ClientSession() as client:
        while process.returncode is None:
            try:
                async with client.get(url) as response:
                    response.raise_for_status()
                return
            except aiohttp.ClientConnectionError:
                await asyncio.sleep(POLL_S)
    raise SystemExit(f"the instant engines ended with status {process.returncode}")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--hosts", nargs="+", required=True, help="loopback addresses, one for each engine")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--chunks", type=int, default=20, help="of a stream")
    parser.add_argument("--gap-s", type=float, default=0.0, help="seconds between the chunks of a stream")
    args = parser.parse_args()
    app = create_engine(args.chunks, args.gap_s)
    web.run_app(app, host=args.hosts, port=args.port, print=None, access_log=None)


if __name__ == "__main__":
    main()
