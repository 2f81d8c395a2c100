"""The part of `fuzz` over sockets: a real gateway, raw bytes, and what it answers."""

from __future__ import annotations

import asyncio
import random
import re
from collections import Counter
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from benchmarks.live.chaos import gauges
from benchmarks.live.gateway_process import free_port, running_gateway
from benchmarks.live.lean_engine import lean_engines
from benchmarks.live.lean_load import Chats, check, connected
from benchmarks.micro import fuzz_seeds
from benchmarks.micro.fuzz_mutator import Mutator, pieces

CLIENTS = 16
WHOLE_S = 60.0  # a connection must have come to its end by then
_STATUS = re.compile(rb"HTTP/1\.1 (\d{3}) ")


async def fuzz_http(inputs: int, seed: int, log: Path) -> dict[str, Any]:
    """Send so many inputs to a gateway. What came of them, as `fuzz.Found` has it, and how often each status."""
    host, port = "127.0.0.1", free_port()
    async with lean_engines((host,), port, gap_s=0.0), running_gateway([f"http://{host}:{port}"], log=log) as (url, _):
        found = await send(url, inputs, seed)
        async with connected([url], 1) as (connection,):
            check(await connection.ask(Chats(2048, 0).request(1)), 0)
        if kept := await gauges(url, 1):
            found["faults"].append(f"{kept} requests are still in flight")
    return found


async def send(url: str, inputs: int, seed: int) -> dict[str, Any]:
    """Send so many inputs to the gateway at `url`, each on a connection of its own."""
    rng = random.Random(seed)
    mutator, statuses, faults = Mutator(fuzz_seeds.REQUEST_SEEDS, rng), Counter[int](), list[str]()
    todo = iter(range(inputs))

    async def client() -> None:
        for _ in todo:
            data = mutator.next()
            try:
                answer = await _ask(url, pieces(data, rng))
            except (OSError, TimeoutError) as error:
                faults.append(f"{data!r}: {error!r}")
                continue
            found = [int(status) for status in _STATUS.findall(answer)]
            statuses.update(found)
            if any(status >= 300 and not 400 <= status < 500 and status != 505 for status in found):
                faults.append(f"{data!r}: {answer[:400]!r}")

    await asyncio.gather(*(client() for _ in range(CLIENTS)))
    accepted = sum(count for status, count in statuses.items() if 200 <= status < 300)
    return {"inputs": inputs, "accepted": accepted, "faults": faults, "statuses": dict(sorted(statuses.items()))}


async def _ask(url: str, data: list[bytes]) -> bytes:
    """Send the pieces on a connection of its own, and all that comes until it ends. Raises OSError and TimeoutError."""
    address = urlsplit(url)
    reader, writer = await asyncio.open_connection(address.hostname, address.port)
    received = b""
    try:
        async with asyncio.timeout(WHOLE_S):
            try:
                for piece in data:
                    writer.write(piece)
                    await asyncio.sleep(0)
                writer.write_eof()
                while part := await reader.read(1 << 16):
                    received += part
            except ConnectionError:  # it was cut off while the client still sent: what came before counts
                pass
    finally:
        writer.close()
    return received
