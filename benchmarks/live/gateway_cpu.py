"""CPU time of the gateway per request: a real `leafcutter serve` between a client and instant engines, each a process.

    .venv/bin/python -m benchmarks.live.gateway_cpu

The engines answer at once with a fixed completion, so all that is measured is the way through: reading, parsing,
choosing, forwarding, watching, learning. CPU time is the gateway process's own (user and system), which other load on
the machine disturbs less than latency. Quote medians.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
from aiohttp import web

from benchmarks.live.gateway_process import free_port, gateway
from router.config import POLICIES

USAGE = {"prompt_tokens": 600, "completion_tokens": 8, "prompt_tokens_details": {"cached_tokens": 320}}
TEXT = "Paris is the capital of France."


def engine(port: int, hosts: list[str], events: int) -> None:
    """Engines that answer at once, one for each of `hosts`; streams have `events` chunks."""
    whole = {"choices": [{"index": 0, "message": {"role": "assistant", "content": TEXT}}], "usage": USAGE}
    piece = {"id": "chatcmpl-1", "model": "m", "choices": [{"index": 0, "delta": {"content": " word"}}]}

    async def chat(request: web.Request) -> web.StreamResponse:
        if not (await request.json()).get("stream"):
            return web.json_response(whole)
        answer = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await answer.prepare(request)
        for _ in range(events):
            await answer.write(b"data: " + json.dumps(piece).encode() + b"\n\n")
        await answer.write(b"data: " + json.dumps({"choices": [], "usage": USAGE}).encode() + b"\n\ndata: [DONE]\n\n")
        return answer

    async def ok(_: web.Request) -> web.Response:
        return web.json_response({"data": [{"id": "m"}]})

    app = web.Application()
    app.router.add_post("/v1/chat/completions", chat)
    app.router.add_get("/v1/models", ok)
    app.router.add_get("/health", ok)
    web.run_app(app, host=hosts, port=port, print=None, access_log=None)


@asynccontextmanager
async def playing(hosts: list[str], port: int, events: int) -> AsyncIterator[None]:
    """The engines, in a process of their own."""
    command = ["-m", "benchmarks.live.gateway_cpu", "--play", *hosts]
    command += ["--engine-port", str(port), "--events", str(events)]
    process = await asyncio.create_subprocess_exec(sys.executable, *command)
    try:
        yield
    finally:
        process.terminate()
        await process.wait()


def cpu_s(pid: int) -> float:
    """User and system time of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def load(url: str, bodies: list[bytes], clients: int) -> None:
    """Sends every body, `clients` at a time."""
    waiting = iter(bodies)
    async with aiohttp.ClientSession() as session:

        async def client() -> None:
            for body in waiting:
                async with session.post(f"{url}/v1/chat/completions", data=body) as answer:
                    answer.raise_for_status()
                    await answer.read()

        await asyncio.gather(*(client() for _ in range(clients)))


async def measure(args: argparse.Namespace, policy: str, stream: bool) -> list[float]:
    """CPU microseconds per request of each round."""
    # One process plays every engine, each on a loopback address of its own.
    hosts, port = [f"127.0.0.{index + 1}" for index in range(args.engines)], free_port()
    urls = [f"http://{host}:{port}" for host in hosts]
    rounds = []
    async with playing(hosts, port, args.events), gateway(urls, "--policy", policy, log=args.log) as (url, pid):
        for number in range(args.rounds + 1):
            bodies = [body(number * args.requests + index, stream) for index in range(args.requests)]
            before = cpu_s(pid)
            await load(url, bodies, args.clients)
            rounds.append((cpu_s(pid) - before) / args.requests * 1e6)
    return rounds[1:]  # the first one warms up


def body(number: int, stream: bool) -> bytes:
    """A chat of 2.4 kB whose first half many share."""
    text = f"system {number % 16} " * 100 + f"question {number} " * 60
    return json.dumps({"model": "m", "stream": stream, "messages": [{"role": "user", "content": text}]}).encode()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--policies", nargs="+", default=["round_robin", "lbgr"], choices=POLICIES)
    parser.add_argument("--engines", type=int, default=4)
    parser.add_argument("--requests", type=int, default=2000, help="of each round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--clients", type=int, default=8, help="requests at a time")
    parser.add_argument("--events", type=int, default=20, help="chunks of a stream")
    parser.add_argument("--log", type=Path, default=Path(os.devnull), help="file for the gateway's log")
    parser.add_argument("--play", nargs="+", metavar="HOST", help="be the engines (used by the script itself)")
    parser.add_argument("--engine-port", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.play:
        return engine(args.engine_port, args.play, args.events)
    for policy in args.policies:
        for stream in (False, True):
            start = time.perf_counter()
            rounds = asyncio.run(measure(args, policy, stream))
            kind = f"stream of {args.events}" if stream else "whole answer"
            spread = f"{statistics.median(rounds):.0f} us [{min(rounds):.0f}-{max(rounds):.0f}]"
            print(f"{policy:12} {kind:14} {spread} CPU a request ({time.perf_counter() - start:.0f} s)", flush=True)


if __name__ == "__main__":
    main()
