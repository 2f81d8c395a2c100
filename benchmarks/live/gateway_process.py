"""A real gateway for a benchmark: `leafcutter serve`, or another router, as a process of its own."""

from __future__ import annotations

import asyncio
import socket
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import httpx


def free_port() -> int:
    """A port of the loopback address that nothing listens on now."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


def process_tree(pid: int) -> list[int]:
    """A process and everything that it started and that runs now."""
    parents = {int(file.parent.name): _parent(file) for file in Path("/proc").glob("[0-9]*/stat")}
    found = [pid]
    for each in found:  # it grows as it is walked
        found += [child for child, parent in parents.items() if parent == each]
    return found


def _parent(stat: Path) -> int | None:
    try:
        return int(stat.read_text().rsplit(")", 1)[1].split()[1])
    except OSError:  # it ended meanwhile
        return None


def cpu_s(pids: Sequence[int]) -> float:
    """Seconds of CPU time, user and system, that several processes have used together so far. Raises OSError for one
    that has ended.

    It is the clock of clock_getcpuclockid(3), which counts every thread of a process, to the microsecond.
    """
    return sum(time.clock_gettime(~pid << 3 | 2) for pid in pids)


def parts(pid: int) -> dict[str, list[int]]:
    """The processes of a gateway by what they do. pid: of the command; its processes are called as `ps` shows them."""
    found: dict[str, list[int]] = {"supervisor": [pid]}
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in (task / "children").read_text().split():
            words = Path(f"/proc/{child}/cmdline").read_text().split("\0")
            name = words[words.index("router.processes") + 1] if "router.processes" in words else "other"
            found.setdefault("edges" if name.startswith("edge-") else name, []).append(int(child))
    return {"gateway": [pid]} if len(found) == 1 else found


def resident_mb(pid: int) -> float:
    """MiB of memory that a process holds."""
    return int(Path(f"/proc/{pid}/status").read_text().split("VmRSS:")[1].split()[0]) / 1024


@asynccontextmanager
async def running_gateway(urls: Sequence[str], *flags: str, log: Path) -> AsyncIterator[tuple[str, int]]:
    """Serve the engines at `urls`; give the gateway's base URL and process id once it finds all of them healthy."""
    port = free_port()
    command = [sys.executable, "-m", "router", "serve", "--shutdown-pause-secs", "0", *flags]
    command += ["--port", str(port), "--worker-urls", *urls]
    async with running_router(command, port, len(urls), log=log) as found:
        yield found


@asynccontextmanager
async def running_router(
    command: Sequence[str], port: int, engines: int, *, log: Path
) -> AsyncIterator[tuple[str, int]]:
    """The same of any router that tells at `/readiness` how many of its engines are healthy."""
    with log.open("ab") as out:
        process = await asyncio.create_subprocess_exec(*command, stdout=out, stderr=out)
    url = f"http://127.0.0.1:{port}"
    try:
        await _ready(process, url, engines, log)
        yield url, process.pid
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()


async def _ready(process: asyncio.subprocess.Process, url: str, engines: int, log: Path) -> None:
    async with httpx.AsyncClient() as client:
        while process.returncode is None:
            try:
                if (await client.get(f"{url}/readiness")).json().get("healthy_workers") == engines:
                    return
            except httpx.TransportError:
                pass
            await asyncio.sleep(0.1)
    raise SystemExit(f"the router ended with status {process.returncode}: see {log}")
