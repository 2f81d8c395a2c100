"""The scenarios of `chaos`: what goes wrong, and when."""

from __future__ import annotations

import asyncio
import os
import random
import signal
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import cast
from urllib.parse import urlsplit

from benchmarks.live.chaos_engine import GAP_S, STATUSES
from benchmarks.live.chaos_load import Load, judge
from benchmarks.live.instant_engine import engines_process
from benchmarks.live.lean_load import connected

HOST = "127.0.0.1"
BREAKING = {"reset-middle", "reset-before-end", "endless"}  # the faults that break streams of which a part has come
STRANGERS = 100
LET_GO_S = 75.0  # the gateway gives a head or a body 30 s, and looks at the clock each 7.5 s


class Engine:
    """One engine, in a process of its own, that can be told to fail, stopped, killed and started again."""

    def __init__(self, port: int) -> None:
        self.url, self._port = f"http://{HOST}:{port}", port
        self._process = AsyncExitStack()
        self._pid = 0
        self._alive = False

    async def __aenter__(self) -> Engine:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        self.signal(signal.SIGCONT)
        await self._process.aclose()

    async def start(self) -> None:
        engines = engines_process("benchmarks.live.chaos_engine", (HOST,), self._port, "--gap-s", str(GAP_S))
        self._pid, self._alive = await self._process.enter_async_context(engines), True

    def signal(self, number: signal.Signals) -> None:
        if self._alive:
            os.kill(self._pid, number)

    async def kill(self) -> None:
        self.signal(signal.SIGKILL)
        self._alive = False
        await self._process.aclose()

    async def fail(self, fault: str) -> None:
        """Fail every request in that way from now on; empty: be well."""
        async with connected([self.url], 1) as (connection,):
            await connection.ask(f"POST /fault/{fault} HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n".encode())

    async def heal(self) -> None:
        self.signal(signal.SIGCONT)
        if not self._alive:
            await self.start()
        await self.fail("")


@dataclass(frozen=True)
class Stage:
    """Where a scenario is played. The last engine is well all the time. requests, storm: as many as were asked for."""

    url: str
    engines: Sequence[Engine]
    load: Load
    requests: int
    storm: int


Play = Callable[[Stage], Awaitable[dict[str, int] | None]]


@dataclass(frozen=True)
class Scenario:
    """flags: options of the gateway. breaks: streams of which a part has come may break."""

    play: Play
    flags: tuple[str, ...] = ()
    breaks: bool = False


# --- engines ----------------------------------------------------------------------------------------------------------


def failing(fault: str, bad: int) -> Play:
    """So many engines have a fault from the start."""

    async def play(stage: Stage) -> None:
        for engine in stage.engines[:bad]:
            await engine.fail(fault)
        await stage.load.run(stage.requests)

    return play


def failing_for(fault: str, seconds: float) -> Play:
    """An engine has a fault which only time tells, while requests go on."""

    async def play(stage: Stage) -> None:
        await stage.engines[0].fail(fault)
        await stage.load.run_for(seconds)

    return play


async def stopped(stage: Stage) -> None:
    """An engine is stopped under load, and goes on after some seconds."""

    async def stop() -> None:
        await asyncio.sleep(1)
        stage.engines[0].signal(signal.SIGSTOP)
        await asyncio.sleep(8)
        stage.engines[0].signal(signal.SIGCONT)

    await asyncio.gather(stage.load.run_for(12), stop())


async def killed(stage: Stage) -> None:
    """An engine is killed under load and started again, three times."""

    async def kill() -> None:
        for _ in range(3):
            await asyncio.sleep(1)
            await stage.engines[0].kill()
            await asyncio.sleep(1)
            await stage.engines[0].start()

    await asyncio.gather(stage.load.run_for(7), kill())


async def storm(stage: Stage) -> dict[str, int]:
    """Engines are killed and started again at random, while clients come and leave at random."""
    rng, kills = random.Random(1), 0

    async def kill() -> None:
        nonlocal kills
        while True:
            await asyncio.sleep(rng.uniform(0.1, 1.0))
            engine = rng.choice(stage.engines[:-1])
            await engine.kill()
            kills += 1
            await asyncio.sleep(rng.uniform(0.1, 1.0))
            await engine.start()

    killing = asyncio.create_task(kill())
    await stage.load.run(stage.storm, 20, leaving=0.1)
    killing.cancel()
    await asyncio.wait([killing])
    return {"kills": kills}


# --- clients ----------------------------------------------------------------------------------------------------------


async def _connect(stage: Stage) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    address = urlsplit(stage.url)
    return await asyncio.open_connection(address.hostname, address.port)


def slow(beginning: bytes, drop: bytes) -> Play:
    """Clients send the beginning of a request, and its rest drop by drop, a second apart, until they are let go."""

    async def drip(stage: Stage) -> bool:
        reader, writer = await _connect(stage)
        writer.write(beginning)
        ended = asyncio.create_task(reader.read())
        try:
            async with asyncio.timeout(LET_GO_S):
                while not ended.done():
                    writer.write(drop)
                    await asyncio.wait([ended], timeout=1)
            return not ended.exception()
        except TimeoutError:
            return False
        finally:
            ended.cancel()
            writer.close()

    async def play(stage: Stage) -> dict[str, int]:
        slow_ones = asyncio.gather(*(drip(stage) for _ in range(STRANGERS)))
        while not slow_ones.done():
            await stage.load.run(100)
            await asyncio.sleep(0.5)
        return {"staying": (await slow_ones).count(False)}

    return play


async def half_closing(stage: Stage) -> None:
    """Clients close their sending side after the request, and want its answer nevertheless."""

    async def ask(number: int) -> None:
        request, chunks = stage.load.request(number)
        reader, writer = await _connect(stage)
        writer.write(request)
        writer.write_eof()
        stage.load.tally.take(judge(await reader.read(), chunks))
        writer.close()

    for first in range(0, stage.requests, 10):
        await asyncio.gather(*map(ask, range(first, first + 10)))


async def never_reading(stage: Stage) -> None:
    """Clients ask for 100 MB and never read, beside others. That they are let go in the end: `endurance`."""
    body = b'{"stream":true,"max_tokens":12800,"chunk_bytes":8192,"model":"m","messages":[]}'
    head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % len(body)
    silent = [await _connect(stage) for _ in range(20)]
    for _, writer in silent:
        cast(asyncio.Transport, writer.transport).pause_reading()
        writer.write(head + body)
    await stage.load.run_for(15)
    for _, writer in silent:
        writer.transport.abort()


BEGINNING = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\n"
AT_ONCE = (
    *(f"status-{status}" for status in STATUSES),
    *("reset-before-head", "reset-after-head", "reset-middle", "reset-before-end", "reset-after-end"),
    *("garbage", "oversized-head"),
)
SCENARIOS = {
    "none": Scenario(failing("", 0)),
    **{fault: Scenario(failing(fault, 1), breaks=fault in BREAKING) for fault in AT_ONCE},
    "two of three reset": Scenario(failing("reset-before-head", 2)),
    "two of three answer 500": Scenario(failing("status-500", 2)),
    "endless": Scenario(failing_for("endless", 15), ("--request-timeout-secs", "5"), breaks=True),
    "dripping": Scenario(failing_for("dripping", 60)),
    "wedged": Scenario(failing_for("wedged", 60)),
    "stopped": Scenario(stopped),
    "killed": Scenario(killed, breaks=True),
    "slow heads": Scenario(slow(BEGINNING, b"x: y\r\n")),
    "slow bodies": Scenario(slow(BEGINNING + b"content-length: 1000\r\n\r\n{", b" ")),
    "half-closing": Scenario(half_closing),
    "never reading": Scenario(never_reading, ("--request-timeout-secs", "10")),
    "storm": Scenario(storm, breaks=True),
}
