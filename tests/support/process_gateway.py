"""The real command with several processes, in front of fake engines that run in the test's own event loop."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from prometheus_client.parser import text_string_to_metric_families

from tests.support.fake_engine import FakeEngine, Script
from tests.support.gateway_server import BODIES, CHAT

ROOT = Path(__file__).parents[2]


@dataclass
class Processes:
    """A running gateway of several processes. folder: where they keep their private folder."""

    process: asyncio.subprocess.Process
    url: str
    client: httpx.AsyncClient
    engines: list[FakeEngine]
    log_file: Path
    folder: Path

    @property
    def log(self) -> str:
        return self.log_file.read_text()

    def pids(self, name: str = "") -> list[int]:
        """The processes of that name (all: of any), the oldest first."""
        return sorted(pid for pid, found in children(self.process.pid) if name in ("", found))

    @property
    def router(self) -> int:
        """The router process that decides; the standby is younger."""
        return self.pids("router")[0]

    def edges(self) -> list[int]:
        return sorted(pid for pid, found in children(self.process.pid) if found.startswith("edge-"))

    async def post(self, *, stream: bool = False, **fields: Any) -> httpx.Response:
        return await self.client.post(CHAT, json={**BODIES[CHAT], "stream": stream, **fields})

    async def get(self, path: str) -> Any:
        """The JSON at a path, asked again while no router process answers."""
        while (answer := await self.client.get(path)).status_code == 503:
            await asyncio.sleep(0.02)
        return answer.json()

    async def samples(self) -> dict[str, float]:
        """The page of metrics: each sample by its name with its labels, as they stand there."""
        page = (await self.client.get("/metrics")).text
        return {
            sample.name + "".join(f" {name}={value}" for name, value in sorted(sample.labels.items())): sample.value
            for family in text_string_to_metric_families(page)
            for sample in family.samples
        }

    async def total(self, name: str) -> float:
        """The sum of a metric over all its labels."""
        return sum(value for key, value in (await self.samples()).items() if key.split(" ")[0] == name)

    async def in_flight(self) -> float:
        return await self.total("leafcutter_in_flight")

    async def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        if self.process.returncode is None:
            self.process.send_signal(number)
        return await self.process.wait()


def children(parent: int) -> Iterator[tuple[int, str]]:
    """The processes that the supervisor has started, with their names."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rsplit(")", 1)[1].split()
                words = (entry / "cmdline").read_text().split("\0")
            except (FileNotFoundError, ProcessLookupError):
                continue
            if int(fields[1]) == parent and fields[0] != "Z" and "router.processes" in words:
                yield int(entry.name), words[words.index("router.processes") + 1]


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


async def launch(*flags: str, folder: Path, log: Path) -> asyncio.subprocess.Process:
    """Start `leafcutter serve`. Its log goes to the file `log`."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("LEAFCUTTER_")}
    with log.open("wb") as out:
        return await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "router", "serve", "--port", "0", "--shutdown-pause-secs", "0", *flags),
            cwd=ROOT,
            env={**env, "TMPDIR": str(folder)},
            stdout=out,
            stderr=out,
        )


@asynccontextmanager
async def processes(
    *scripts: Script,
    count: int = 2,
    tmp_path: Path,
    flags: Sequence[str] = (),
    key: str | None = None,
    listed: bool = True,
) -> AsyncIterator[Processes]:
    """Serve one engine for each script with `count` edges. flags: options of the command, besides. listed: the engines
    are among them."""
    folder, log = tmp_path / "private", tmp_path / "gateway.log"
    folder.mkdir()
    async with AsyncExitStack() as stack:
        engines = [await stack.enter_async_context(FakeEngine(script).serving()) for script in scripts]
        options = ["--processes", str(count), "--health-check-interval-secs", "0.5", "--no-access-log", *flags]
        if listed:
            options += ["--worker-urls", *(engine.url for engine in engines)]
        process = await launch(*options, folder=folder, log=log)
        try:
            url = await _url(process, log)
            headers = {"authorization": f"Bearer {key}"} if key else {}
            limits = httpx.Limits(max_keepalive_connections=0)  # each request meets any edge
            client = await stack.enter_async_context(
                httpx.AsyncClient(base_url=url, timeout=30, limits=limits, headers=headers, verify=False)
            )
            yield Processes(process, url, client, engines, log, folder)
        finally:
            if process.returncode is None:
                process.terminate()
            try:
                async with asyncio.timeout(10):
                    await process.wait()
            except TimeoutError:
                process.kill()


async def _url(process: asyncio.subprocess.Process, log: Path) -> str:
    while not (found := re.search(r"gateway on (http://\S+),", log.read_text())):
        assert process.returncode is None, log.read_text()
        await asyncio.sleep(0.02)
    return found[1]


TOKENS = tuple(f" word{n}" for n in range(5))


def gated() -> Script:
    """An engine whose streams stand still after their first chunk, until its gate opens."""
    return Script(tokens=TOKENS, gate=asyncio.Event())


@dataclass
class Stream:
    """A client with a connection of its own, which has read the beginning of its answer."""

    response: httpx.Response
    rest: asyncio.Task[bytes]
    headers: httpx.Headers = field(init=False)

    def __post_init__(self) -> None:
        self.headers = self.response.headers

    async def complete(self) -> bool:
        """Whether the stream has come to its end."""
        try:
            return (await self.rest).endswith(b"data: [DONE]\n\n")
        except httpx.TransportError:
            return False


@asynccontextmanager
async def streams(url: str, count: int) -> AsyncIterator[list[Stream]]:
    async with AsyncExitStack() as stack:

        async def begin() -> Stream:
            client = await stack.enter_async_context(httpx.AsyncClient(base_url=url, timeout=30, verify=False))
            body = {**BODIES[CHAT], "stream": True}
            response = await stack.enter_async_context(client.stream("POST", CHAT, json=body))
            assert response.status_code == 200
            return Stream(response, asyncio.create_task(response.aread()))

        yield list(await asyncio.gather(*(begin() for _ in range(count))))


async def until(condition: Callable[[], Awaitable[bool]], seconds: float = 30.0) -> None:
    """Wait until an asynchronous condition holds."""
    async with asyncio.timeout(seconds):
        while not await condition():
            await asyncio.sleep(0.02)


async def equals(read: Callable[[], Awaitable[float]], value: float) -> bool:
    return await read() == value


async def all_gone(pids: list[int]) -> bool:
    return not any(map(alive, pids))
