"""An engine for `large_inputs`: it reads bodies of any size and gives answers of any size.

    python -m benchmarks.live.bulk_engine --hosts 127.0.0.1 --port 9000

The header `x-answer-mb` of a request says how many MB its answer has; without it the answer is a short completion.
"""

from __future__ import annotations

import argparse
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import uvloop
from aiohttp import web

from benchmarks.live.instant_engine import engines_process

SHORT = {
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "ok"}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 9, "completion_tokens": 1, "prompt_tokens_details": {"cached_tokens": 0}},
}
PIECE = b"x" * (1 << 20)


async def answer(request: web.Request) -> web.StreamResponse:
    async for _ in request.content.iter_any():
        pass
    megabytes = int(request.headers.get("x-answer-mb", "0"))
    if not megabytes:
        return web.json_response(SHORT)
    response = web.StreamResponse(headers={"content-type": "application/json"})
    response.content_length = megabytes * len(PIECE)
    await response.prepare(request)
    for _ in range(megabytes):
        await response.write(PIECE)
    return response


async def models(_: web.Request) -> web.Response:
    return web.json_response({"object": "list", "data": [{"id": "m", "object": "model"}]})


@asynccontextmanager
async def bulk_engine(host: str, port: int) -> AsyncIterator[None]:
    """The engine in a process of its own, which listens when this begins."""
    async with engines_process(__spec__.name, [host], port):
        yield


async def serve(hosts: Sequence[str], port: int) -> None:
    app = web.Application(client_max_size=1 << 40)
    app.router.add_post("/v1/chat/completions", answer)
    app.router.add_get("/v1/models", models)
    app.router.add_get("/health", models)
    await web._run_app(app, host=list(hosts), port=port, print=lambda *_: None)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--hosts", nargs="+", required=True)
    parser.add_argument("--port", type=int, required=True)
    args = parser.parse_args()
    uvloop.run(serve(args.hosts, args.port))


if __name__ == "__main__":
    main()
