"""The processes of the gateway that `stall` measures: a whole gateway, or a router process and edges.

They are the product's own, but for the fleet, which is healthy from the beginning and never probed, and for a `Monitor`
in each of them, which prints what it saw since the last time at every SIGUSR1. As under the supervisor, the orders come
over a socket pair, and the end of that connection ends the process.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import random
import signal
import socket
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn
import uvloop

from router.core.router import Router
from router.gateway.app import create_app
from router.gateway.server import serve_app, server_config, tended
from router.processes import edge
from router.processes.control import STOP, Control, Orders
from router.processes.decision_server import DecisionServer
from router.types import BlockKey, Ending, EngineInfo, Outcome, ParsedRequest, Prompt

GATEWAY, ROUTER, EDGE = "gateway", "router", "edge"
BLOCK_TOKENS, PROMPT_BLOCKS = 64, 24
TICK_S = 0.001
PAST_S = 1e6  # what fills a memory has happened so long ago

Figures = dict[str, float]


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

    def take(self) -> Figures:
        """The figures since the last call, in milliseconds."""
        found = {
            "stall_ms": self.stall_s * 1e3,
            "collection_max_ms": max(self.collections, default=0.0) * 1e3,
            "collection_sum_ms": sum(self.collections) * 1e3,
        }
        self.stall_s = 0.0
        self.collections.clear()
        return found


def fill(router: Router, blocks: int, begin_s: float) -> None:
    """Route prompts with shared first halves until the index holds so many blocks and the decision log is full."""
    rng = random.Random(1)
    heads = [[rng.getrandbits(60) for _ in range(PROMPT_BLOCKS // 2)] for _ in range(2000)]
    number = 0
    while router.index_blocks < blocks or number < 10_000:
        number += 1
        now = begin_s + number * 0.01
        keys = [*rng.choice(heads), *(rng.getrandbits(60) for _ in range(PROMPT_BLOCKS // 2))]
        prompt = Prompt(BlockKey(0), tuple(map(BlockKey, keys)), BLOCK_TOKENS, BLOCK_TOKENS * PROMPT_BLOCKS, (), True)
        request = ParsedRequest(f"r{number}", "/v1/completions", "m", prompt, True, None)
        decision = router.route(request, now)
        router.first_token(decision, now + 0.1)
        outcome = Outcome(Ending.OK, now + 0.3, now + 0.1, prompt.units, int(decision.hit_tokens), 9)
        router.complete(decision, outcome)


def create_router(orders: Orders, order: str, *, full: bool) -> Router:
    """A router whose engines evict by `order` and are healthy. full: its memory is."""
    routing = orders.config.routing
    router = Router(routing, orders.config.policies, rng=random.Random(1), timer=time.perf_counter)
    most = routing.prefix_index_blocks
    for engine in orders.engines:
        router.add_engine(engine)
        router.set_info(engine, EngineInfo(("m",), order, 16, 2 * most * BLOCK_TOKENS // 16))
        router.set_health(engine, True)
    if full:
        fill(router, most - PROMPT_BLOCKS, time.monotonic() - PAST_S)
    return router


async def run_gateway(control: Control, router: Router, collector: str) -> None:
    """The gateway as one process. The end of the connection is a SIGTERM, which is how uvicorn is told."""
    config, engines = control.orders.config, control.orders.engines
    app = create_app(config, router, engines)
    with until_told(control, lambda: signal.raise_signal(signal.SIGTERM)):
        control.say_ready()
        if collector == "python":
            await uvicorn.Server(server_config(config, app)).serve()
        else:
            await serve_app(config, app, idle=lambda: router.in_flight == 0)


async def run_router(control: Control, router: Router) -> None:
    """The router process, without what edges do not ask of it."""
    stopped, server = asyncio.Event(), DecisionServer(router, control.orders.engines, time.monotonic)
    with until_told(control, stopped.set), tended(lambda: router.in_flight == 0):
        async with server.running(control.orders.decisions):
            control.say_ready()
            await stopped.wait()


@contextmanager
def until_told(control: Control, stop: Callable[[], None]) -> Iterator[None]:
    """Call `stop` when the connection to whoever has started the process ends."""
    listening = asyncio.create_task(control.listen({STOP: lambda _: stop()}))
    try:
        yield
    finally:
        listening.cancel()


async def measured(work: Coroutine[Any, Any, None]) -> None:
    """Do the work of a process, and tell what its monitor saw when asked."""
    monitor = Monitor()
    asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, lambda: print(json.dumps(monitor.take()), flush=True))
    watching = asyncio.create_task(monitor.watch())
    await work
    watching.cancel()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("role", choices=(GATEWAY, ROUTER, EDGE))
    parser.add_argument("connection", type=int, help="file descriptor")
    parser.add_argument("--order", required=True)
    parser.add_argument("--full", action="store_true")
    parser.add_argument("--collector", required=True)
    args = parser.parse_args()
    control = Control(socket.socket(fileno=args.connection))
    if args.role == EDGE:
        return uvloop.run(measured(edge.run(control)))
    router = create_router(control.orders, args.order, full=args.full)
    if args.role == ROUTER:
        return uvloop.run(measured(run_router(control, router)))
    return uvloop.run(measured(run_gateway(control, router, args.collector)))


if __name__ == "__main__":
    main()
