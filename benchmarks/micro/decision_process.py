"""CPU time of the router process per request, with several processes: how much decides, and how much is the protocol.

    .venv/bin/python -m benchmarks.micro.decision_process

The router process's end of the protocol runs in a process of its own. This process is its edge: it asks for streamed
chats, and tells of the first token and of the end, without any HTTP. The protocol alone is what is left if the same
decision is given to every request and nothing is learned. CPU time is the scheduler's own account of that process.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Collection, Iterator
from pathlib import Path

import uvloop

from benchmarks.live.load import chat_body
from benchmarks.report import spread
from router.config import configure
from router.core.options import POLICIES
from router.core.router import Router
from router.gateway.openai_request import parse_request
from router.gateway.server import tended
from router.processes.decision_server import DecisionServer
from router.processes.remote_decider import RemoteDecider
from router.types import Decision, Ending, EngineId, EngineInfo, Outcome, ParsedRequest

TTFT_S, DECODE_S = 0.004, 0.016
INFO = EngineInfo(models=("m",), block_size=16, capacity_blocks=10_000)


class Absent(Router):
    """A router that gives every request the first decision, and takes in nothing."""

    _first: Decision | None = None

    def route(
        self, request: ParsedRequest, now: float, *, exclude: Collection[EngineId] = (), held_s: float = 0.0
    ) -> Decision:
        if self._first is None:
            self._first = super().route(request, now, exclude=exclude, held_s=held_s)
        return self._first

    def first_token(self, decision: Decision, now: float) -> None:
        pass

    def complete(self, decision: Decision, outcome: Outcome) -> None:
        pass


def names(engines: int) -> list[EngineId]:
    return [EngineId(f"engine-{n}") for n in range(engines)]


async def serve(path: str, policy: str, engines: int, *, absent: bool) -> None:
    """The router process's end, until it is ended."""
    config = configure(policy=policy)
    kind = Absent if absent else Router
    router = kind(config.routing, config.policies, rng=random.Random(1), timer=time.perf_counter)
    addresses = {engine: f"http://127.0.0.1:{port}" for port, engine in enumerate(names(engines), 1)}
    for engine in addresses:
        router.add_engine(engine)
        router.set_info(engine, INFO)
        router.set_health(engine, True)
    async with DecisionServer(router, addresses, time.monotonic).running(path):
        with tended(lambda: False):
            await asyncio.Event().wait()


async def ask(decider: RemoteDecider, request: ParsedRequest) -> None:
    """One stream, as an edge would tell of it."""
    placement = await decider.route(request, [])
    await asyncio.sleep(TTFT_S)
    first_s = time.monotonic()
    decider.first_token(placement.booking, first_s)
    await asyncio.sleep(DECODE_S)
    decider.complete(placement.booking, Outcome(Ending.OK, time.monotonic(), first_s, 600, 320, 20))


async def measure(args: argparse.Namespace, clients: int, *, absent: bool) -> tuple[list[float], float]:
    """CPU microseconds per request of each round, and the requests per second."""
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/decisions"
        command = ["-m", __spec__.name, "--serve", path, "--policy", args.policy, "--engines", str(args.engines)]
        process = await asyncio.create_subprocess_exec(sys.executable, *command, *["--absent"] * absent)
        try:
            decider = RemoteDecider(path, "edge-0", time.monotonic)
            rounds, seconds = [], []
            async with decider.running():
                await decider.known.wait()
                for number in range(args.rounds + 1):
                    requests = made(args.requests, number)
                    before_s, begun_s = used_s(process.pid), time.perf_counter()
                    await asyncio.gather(*(work(decider, requests) for _ in range(clients)))
                    seconds.append(time.perf_counter() - begun_s)
                    rounds.append((used_s(process.pid) - before_s) / args.requests * 1e6)
            return rounds[1:], args.requests / statistics.median(seconds)  # the first round warms up
        finally:
            process.kill()
            await process.wait()


async def work(decider: RemoteDecider, requests: Iterator[ParsedRequest]) -> None:
    for request in requests:
        await ask(decider, request)


def made(count: int, number: int) -> Iterator[ParsedRequest]:
    bodies = [chat_body(each, stream=True) for each in range(number * count, (number + 1) * count)]
    route, headers = "/v1/chat/completions", dict[bytes, bytes]()
    return iter(
        [parse_request(body, route=route, headers=headers, request_id="r", block_tokens=64).parsed for body in bodies]
    )


def used_s(pid: int) -> float:
    return int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) / 1e9


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--policy", default="lbgr", choices=POLICIES)
    parser.add_argument("--engines", type=int, default=8)
    parser.add_argument("--clients", type=int, nargs="+", default=[16, 64, 256], help="requests at a time")
    parser.add_argument("--requests", type=int, default=4000, help="of each round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    parser.add_argument("--absent", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        return uvloop.run(serve(args.serve, args.policy, args.engines, absent=args.absent))
    for clients in args.clients:
        for what, absent in (("the whole", False), ("protocol", True)):
            rounds, rate = uvloop.run(measure(args, clients, absent=absent))
            cost = spread(rounds, 0)
            print(f"{what:10} {clients:4} at a time: {cost} us CPU a request, {rate:.0f} requests/s", flush=True)


if __name__ == "__main__":
    main()
