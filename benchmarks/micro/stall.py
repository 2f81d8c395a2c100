"""How long the gateway stands still: the longest stall of its event loop and the gaps between a stream's chunks, with
an empty and with a full memory (a prefix index of a million blocks, a full decision log).

    .venv/bin/python -m benchmarks.micro.stall

Three processes: instant engines, the gateway, clients; the gateway has a core of its own if there are two. Half of the
clients read streams whose chunks the engines send 10 ms apart, half ask for whole answers with a pause between them:
about half of what the gateway could do, since beyond that a turn of the loop is as long as the queue. Printed are, for
each kind of memory:

- stall: the most CPU time that the loop's thread used between two turns of the loop, milliseconds. Other load on the
  machine does not count, what the gateway itself does (garbage collection, parsing, learning) does;
- collection: the same of the garbage collector alone, the longest walk and the sum of all;
- gap: between the chunks of a stream as a client sees it, P99 and longest, other load on the machine included;
- whole: answers that are no stream, P99.

With `--collector python` the gateway runs under Python's own settings, to compare with.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import os
import random
import signal
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import aiohttp
import uvicorn
import uvloop
from aiohttp import web

from router.cli.main import serve_app, server_config
from router.config import Config
from router.core.router import Router
from router.gateway.app import create_app
from router.types import BlockKey, Ending, EngineId, EngineInfo, Outcome, ParsedRequest, Prompt

USAGE = {"prompt_tokens": 600, "completion_tokens": 32, "prompt_tokens_details": {"cached_tokens": 320}}
BLOCK = 64
FULL_BLOCKS = 1_000_000
PROMPT_BLOCKS = 24
GAP_S = 0.01
PAUSE_S = 0.04
CORES = list(range(os.cpu_count() or 1))
TICK_S = 0.001


# --- the engines' process -------------------------------------------------------------------------------------------


def play_engines(hosts: list[str], port: int, chunks: int) -> None:
    whole = {"choices": [{"index": 0, "message": {"role": "assistant", "content": "Paris"}}], "usage": USAGE}
    piece = b"data: " + json.dumps({"choices": [{"index": 0, "delta": {"content": " word"}}]}).encode() + b"\n\n"
    last = b"data: " + json.dumps({"choices": [], "usage": USAGE}).encode() + b"\n\ndata: [DONE]\n\n"

    async def chat(request: web.Request) -> web.StreamResponse:
        if not (await request.json()).get("stream"):
            return web.json_response(whole)
        answer = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await answer.prepare(request)
        for _ in range(chunks):
            await answer.write(piece)
            await asyncio.sleep(GAP_S)
        await answer.write(last)
        return answer

    app = web.Application()
    app.router.add_post("/v1/chat/completions", chat)
    web.run_app(app, host=hosts, port=port, print=None, access_log=None)


# --- the gateway's process ------------------------------------------------------------------------------------------


class Monitor:
    """Longest CPU time between two turns of the loop, and the collector's."""

    def __init__(self) -> None:
        self.stall_s = 0.0
        self.collections: list[float] = []
        self._begun_s = 0.0
        gc.callbacks.append(self._collect)

    def _collect(self, phase: str, _info: dict[str, int]) -> None:
        if phase == "start":
            self._begun_s = time.thread_time()
        else:
            self.collections.append(time.thread_time() - self._begun_s)

    async def watch(self) -> None:
        before = time.thread_time()
        while True:
            await asyncio.sleep(TICK_S)
            now = time.thread_time()
            self.stall_s, before = max(self.stall_s, now - before), now

    def take(self) -> dict[str, float]:
        """Milliseconds since the last call."""
        found = {
            "stall_ms": self.stall_s * 1e3,
            "collection_max_ms": max(self.collections, default=0.0) * 1e3,
            "collection_sum_ms": sum(self.collections) * 1e3,
        }
        self.stall_s = 0.0
        self.collections.clear()
        return found


def fill(router: Router, blocks: int) -> None:
    """Prompts of shared halves until the index holds so many blocks and the decision log is full."""
    rng, fresh = random.Random(1), 0
    heads = [[rng.getrandbits(60) for _ in range(PROMPT_BLOCKS // 2)] for _ in range(2000)]
    number = 0
    while router.index_blocks < blocks or number < 10_000:
        number += 1
        fresh += 1
        keys = [*rng.choice(heads), *(rng.getrandbits(60) for _ in range(PROMPT_BLOCKS // 2))]
        prompt = Prompt(BlockKey(0), tuple(map(BlockKey, keys)), BLOCK, BLOCK * PROMPT_BLOCKS, (), True)
        request = ParsedRequest(f"r{number}", "/v1/completions", "m", prompt, True, None)
        decision = router.route(request, number * 0.01)
        router.first_token(decision, number * 0.01 + 0.1)
        hits = int(decision.hit_tokens)
        router.complete(decision, Outcome(Ending.OK, number * 0.01 + 0.3, number * 0.01 + 0.1, prompt.units, hits, 9))


async def run_gateway(args: argparse.Namespace) -> None:
    blocks = FULL_BLOCKS if args.full else 0
    config = Config(port=args.port, prefix_index_blocks=max(1, FULL_BLOCKS), log_level="warning")
    offset = time.monotonic()
    router = Router(config, rng=random.Random(1), timer=time.perf_counter)
    urls = {EngineId(f"engine-{n}"): f"http://{host}:{args.engine_port}" for n, host in enumerate(args.hosts)}
    app = create_app(config, router, urls, clock=lambda: time.monotonic() - offset + 1e6)
    for engine in urls:
        router.fleet.set_info(engine, EngineInfo(("m",), args.order, 16, 2 * FULL_BLOCKS * BLOCK // 16))
        router.fleet.set_health(engine, True)
    if args.full:
        fill(router, blocks - PROMPT_BLOCKS)
    os.sched_setaffinity(0, CORES[:1])
    monitor = Monitor()
    watching = asyncio.create_task(monitor.watch())
    print("ready", router.index_blocks, flush=True)
    asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, lambda: print(json.dumps(monitor.take()), flush=True))
    if args.collector == "python":
        await uvicorn.Server(server_config(config, app)).serve()
    else:
        await serve_app(config, app, idle=lambda: False)
    watching.cancel()


# --- the clients ----------------------------------------------------------------------------------------------------


def body(number: int, stream: bool) -> bytes:
    text = f"system {number % 16} " * 100 + f"question {number} " * 60
    return json.dumps({"model": "m", "stream": stream, "messages": [{"role": "user", "content": text}]}).encode()


async def load(url: str, clients: int, seconds: float) -> tuple[list[float], list[float]]:
    """(gaps between chunks, times of whole answers), seconds."""
    gaps: list[float] = []
    wholes: list[float] = []
    end = time.perf_counter() + seconds
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector) as session:

        async def client(index: int) -> None:
            number, stream, rng = index * 100_000, index % 2 == 0, random.Random(index)
            while time.perf_counter() < end:
                number += 1
                # Not in step: requests that arrive together lengthen one turn of the loop by as many.
                await asyncio.sleep(rng.expovariate(1 / (3 * PAUSE_S if stream else PAUSE_S)))
                begun = before = time.perf_counter()
                async with session.post(f"{url}/v1/chat/completions", data=body(number, stream)) as answer:
                    answer.raise_for_status()
                    first = True
                    async for _ in answer.content.iter_any():
                        now = time.perf_counter()
                        if stream and not first:
                            gaps.append(now - before)
                        first, before = False, now
                if not stream:
                    wholes.append(time.perf_counter() - begun)

        await asyncio.gather(*(client(index) for index in range(clients)))
    return gaps, wholes


def resident_mb(pid: int) -> float:
    return int(Path(f"/proc/{pid}/status").read_text().split("VmRSS:")[1].split()[0]) / 1024


async def spawn(*arguments: str, **options: Any) -> asyncio.subprocess.Process:
    """This script in another role."""
    return await asyncio.create_subprocess_exec(sys.executable, "-m", "benchmarks.micro.stall", *arguments, **options)


async def measure(args: argparse.Namespace, order: str, full: bool) -> dict[str, float]:
    hosts, port, engine_port = [f"127.0.0.{n + 1}" for n in range(args.engines)], args.port, args.port + 1
    engines = await spawn("--be-engines", "--hosts", *hosts, "--port", str(engine_port), "--chunks", str(args.chunks))
    flags = ["--hosts", *hosts, "--port", str(port), "--engine-port", str(engine_port), "--order", order]
    flags += ["--collector", args.collector]
    # The first core is the gateway's; a child would inherit that it is not ours.
    gateway = await spawn("--be-gateway", *flags, *(["--full"] if full else []), stdout=asyncio.subprocess.PIPE)
    assert gateway.stdout is not None
    try:
        assert (await gateway.stdout.readline()).startswith(b"ready")
        await asyncio.sleep(2.0)  # until it listens, and the collector is set up
        url = f"http://127.0.0.1:{port}"
        await load(url, args.clients, 2.0)
        gateway.send_signal(signal.SIGUSR1)
        await gateway.stdout.readline()
        gaps, wholes = await load(url, args.clients, args.seconds)
        gateway.send_signal(signal.SIGUSR1)
        found: dict[str, float] = json.loads(await gateway.stdout.readline())
        memory_mb = resident_mb(gateway.pid)
    finally:
        for process in (gateway, engines):
            process.terminate()
        await asyncio.gather(gateway.wait(), engines.wait())
    return found | {
        "gap_p99_ms": statistics.quantiles(gaps, n=100)[98] * 1e3,
        "gap_max_ms": max(gaps) * 1e3,
        "whole_p99_ms": statistics.quantiles(wholes, n=100)[98] * 1e3,
        "answers": len(wholes),
        "memory_mb": memory_mb,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--orders", nargs="+", default=["lru", "rlt_gix"], help="eviction orders of the engines")
    parser.add_argument("--engines", type=int, default=2)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--chunks", type=int, default=32, help="of a stream")
    parser.add_argument("--seconds", type=float, default=15.0, help="of each measurement")
    parser.add_argument("--collector", choices=("tended", "python"), default="tended")
    parser.add_argument("--port", type=int, default=18300)
    parser.add_argument("--out", type=Path, help="file for the figures, JSON")
    for flag in ("--be-engines", "--be-gateway", "--full"):
        parser.add_argument(flag, action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--hosts", nargs="+", help=argparse.SUPPRESS)
    parser.add_argument("--order", help=argparse.SUPPRESS)
    parser.add_argument("--engine-port", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if not args.be_gateway and len(CORES) > 1:
        os.sched_setaffinity(0, CORES[1:])
    if args.be_engines:
        return play_engines(args.hosts, args.port, args.chunks)
    if args.be_gateway:
        return uvloop.run(run_gateway(args))
    rows = []
    for order in args.orders:
        for full in (False, True):
            figures = asyncio.run(measure(args, order, full))
            rows.append({"order": order, "memory": "full" if full else "empty"} | figures)
            print(json.dumps({k: round(v, 2) if isinstance(v, float) else v for k, v in rows[-1].items()}), flush=True)
    if args.out:
        settings = {key: getattr(args, key) for key in ("engines", "clients", "chunks", "seconds", "collector")}
        args.out.write_text(json.dumps({"cores": os.cpu_count(), **settings, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
