"""How long the gateway stands still: the longest stall of its event loop, and the gaps between a stream's chunks.

Both are measured with an empty memory and with a full one: a prefix index of a million blocks and a full decision log.

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
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import pairwise
from pathlib import Path

import uvicorn
import uvloop

from benchmarks.live.gateway_process import resident_mb
from benchmarks.live.instant_engine import instant_engines
from benchmarks.live.load import Answer, busy_client, closed_loop
from benchmarks.report import machine, write_json
from router.config import configure
from router.core.router import Router
from router.gateway.app import create_app
from router.gateway.server import serve_app, server_config
from router.types import BlockKey, Ending, EngineId, EngineInfo, Outcome, ParsedRequest, Prompt

BLOCK_TOKENS = 64
FULL_BLOCKS = 1_000_000
PROMPT_BLOCKS = 24
GAP_S = 0.01
PAUSE_S = 0.04
CORES = list(range(os.cpu_count() or 1))
TICK_S = 0.001


# --- the gateway's process ------------------------------------------------------------------------------------------


class Monitor:
    """Longest CPU time between two turns of the loop, and the CPU times of garbage collections."""

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
        """The figures since the last call, in milliseconds."""
        found = {
            "stall_ms": self.stall_s * 1e3,
            "collection_max_ms": max(self.collections, default=0.0) * 1e3,
            "collection_sum_ms": sum(self.collections) * 1e3,
        }
        self.stall_s = 0.0
        self.collections.clear()
        return found


def fill(router: Router, blocks: int) -> None:
    """Route prompts with shared first halves until the index holds so many blocks and the decision log is full."""
    rng = random.Random(1)
    heads = [[rng.getrandbits(60) for _ in range(PROMPT_BLOCKS // 2)] for _ in range(2000)]
    number = 0
    while router.index_blocks < blocks or number < 10_000:
        number += 1
        keys = [*rng.choice(heads), *(rng.getrandbits(60) for _ in range(PROMPT_BLOCKS // 2))]
        prompt = Prompt(BlockKey(0), tuple(map(BlockKey, keys)), BLOCK_TOKENS, BLOCK_TOKENS * PROMPT_BLOCKS, (), True)
        request = ParsedRequest(f"r{number}", "/v1/completions", "m", prompt, True, None)
        decision = router.route(request, number * 0.01)
        router.first_token(decision, number * 0.01 + 0.1)
        hits = int(decision.hit_tokens)
        router.complete(decision, Outcome(Ending.OK, number * 0.01 + 0.3, number * 0.01 + 0.1, prompt.units, hits, 9))


async def run_gateway(args: argparse.Namespace) -> None:
    config = configure(port=args.port, prefix_index_blocks=FULL_BLOCKS, log_level="warning")
    offset = time.monotonic()
    router = Router(config.routing, config.policies, rng=random.Random(1), timer=time.perf_counter)
    urls = {EngineId(f"engine-{n}"): f"http://{host}:{args.engine_port}" for n, host in enumerate(args.hosts)}
    app = create_app(config, router, urls, clock=lambda: time.monotonic() - offset + 1e6)
    for engine in urls:
        router.set_info(engine, EngineInfo(("m",), args.order, 16, 2 * FULL_BLOCKS * BLOCK_TOKENS // 16))
        router.set_health(engine, True)
    if args.full:
        fill(router, FULL_BLOCKS - PROMPT_BLOCKS)
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


# --- the clients ------------------------------------------------------------------------------------------------------


async def load(url: str, clients: int, seconds: float) -> list[Answer]:
    """Every other client reads streams, the others whole answers."""
    end = time.perf_counter() + seconds
    streams = [index % 2 == 0 for index in range(clients)]
    return await closed_loop(
        url,
        [
            busy_client(index, end=end, stream=stream, pause_s=3 * PAUSE_S if stream else PAUSE_S)
            for index, stream in enumerate(streams)
        ],
    )


async def gateway_figures(gateway: asyncio.subprocess.Process) -> dict[str, float]:
    """What its `Monitor` saw since it was asked last."""
    assert gateway.stdout is not None
    gateway.send_signal(signal.SIGUSR1)
    figures: dict[str, float] = json.loads(await gateway.stdout.readline())
    return figures


@asynccontextmanager
async def monitored_gateway(args: argparse.Namespace, *flags: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """This script as the gateway. The first core is the gateway's; a child would inherit that it is not ours."""
    command = ["-m", "benchmarks.micro.stall", "--be-gateway", "--port", str(args.port), "--collector", args.collector]
    gateway = await asyncio.create_subprocess_exec(sys.executable, *command, *flags, stdout=asyncio.subprocess.PIPE)
    try:
        assert gateway.stdout is not None
        assert (await gateway.stdout.readline()).startswith(b"ready")
        await asyncio.sleep(2.0)  # until it listens, and the collector is set up
        yield gateway
    finally:
        if gateway.returncode is None:
            gateway.terminate()
        await gateway.wait()


async def measure(args: argparse.Namespace, order: str, full: bool) -> dict[str, float]:
    hosts, engine_port = [f"127.0.0.{n + 1}" for n in range(args.engines)], args.port + 1
    url = f"http://127.0.0.1:{args.port}"
    flags = ["--hosts", *hosts, "--engine-port", str(engine_port), "--order", order, *(["--full"] if full else [])]
    async with (
        instant_engines(hosts, engine_port, chunks=args.chunks, gap_s=GAP_S),
        monitored_gateway(args, *flags) as gateway,
    ):
        await load(url, args.clients, 2.0)
        await gateway_figures(gateway)
        answers = await load(url, args.clients, args.seconds)
        found = await gateway_figures(gateway)
        memory_mb = resident_mb(gateway.pid)
    gaps = [after - before for answer in answers if answer.streamed for before, after in pairwise(answer.chunk_s)]
    wholes = [answer.latency_s for answer in answers if not answer.streamed]
    return found | {
        "gap_p99_ms": statistics.quantiles(gaps, n=100)[98] * 1e3,
        "gap_max_ms": max(gaps) * 1e3,
        "whole_p99_ms": statistics.quantiles(wholes, n=100)[98] * 1e3,
        "answers": len(wholes),
        "memory_mb": memory_mb,
    }


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--orders", nargs="+", default=["lru", "rlt_gix"], help="eviction orders of the engines")
    parser.add_argument("--engines", type=int, default=2)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--chunks", type=int, default=32, help="of a stream")
    parser.add_argument("--seconds", type=float, default=15.0, help="of each measurement")
    parser.add_argument("--collector", choices=("tended", "python"), default="tended")
    parser.add_argument("--port", type=int, default=18300)
    parser.add_argument("--out", type=Path, help="file for the figures, JSON")
    for flag in ("--be-gateway", "--full"):
        parser.add_argument(flag, action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--hosts", nargs="+", help=argparse.SUPPRESS)
    parser.add_argument("--order", help=argparse.SUPPRESS)
    parser.add_argument("--engine-port", type=int, help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    args = parse()
    if args.be_gateway:
        return uvloop.run(run_gateway(args))
    if len(CORES) > 1:
        os.sched_setaffinity(0, CORES[1:])
    rows = []
    for order in args.orders:
        for full in (False, True):
            figures = asyncio.run(measure(args, order, full))
            rows.append({"order": order, "memory": "full" if full else "empty"} | figures)
            print(json.dumps({k: round(v, 2) if isinstance(v, float) else v for k, v in rows[-1].items()}), flush=True)
    if args.out:
        settings = {key: getattr(args, key) for key in ("engines", "clients", "chunks", "seconds", "collector")}
        write_json(args.out, {**machine(), **settings, "rows": rows})


if __name__ == "__main__":
    main()
