"""How long a small request waits while the gateway deals with a large body or answer, and what memory that takes.

    .venv/bin/python -m benchmarks.live.large_inputs

A real `leafcutter serve` in front of one engine that takes everything. While one large request is on its way, a client
asks for `/liveness`, again and again over one connection: the gateway answers that by itself, so what the client waits
for is the gateway's event loop. The longest wait of each run is counted; the table has the median and the largest of
the runs, and the same while nothing else is asked. The memory is what the gateway's processes hold more at their peak
than before.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.live.bulk_engine import bulk_engine
from benchmarks.live.gateway_process import free_port, process_tree, resident_mb, running_gateway
from benchmarks.report import machine, markdown_table, write_json

MB = 1 << 20
PAUSE_S = 0.001  # between two small requests
PROBE = b"GET /liveness HTTP/1.1\r\nhost: x\r\n\r\n"


def chat(content: object, **fields: object) -> bytes:
    return json.dumps({"model": "m", "messages": [{"role": "user", "content": content}], **fields}).encode()


def image(megabytes: int) -> bytes:
    return chat([{"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * (megabytes * MB)}}])


def messages(count: int) -> bytes:
    each = [{"role": "user", "content": f"word {n}"} for n in range(count)]
    return json.dumps({"model": "m", "messages": each}).encode()


NOTHING = "nothing"
Input = tuple[Callable[[], bytes], int]
"""A body, and the MB of its answer (0: a short one)."""
INPUTS: dict[str, Input] = {
    NOTHING: (lambda: b"", 0),
    "10 MB of text": (lambda: chat("word " * (2 * MB)), 0),
    "32 MB of text": (lambda: chat("word " * (6 * MB + MB // 4), stream=False), 0),
    "32 MB of text, streamed": (lambda: chat("word " * (6 * MB + MB // 4), stream=True), 0),
    "an image of 20 MB": (lambda: image(20), 0),
    "100,000 messages": (lambda: messages(100_000), 0),
    "32 MB of token ids": (lambda: json.dumps({"model": "m", "messages": [], "ids": list(range(4 * MB))}).encode(), 0),
    "a body of 280 MB": (lambda: chat("word " * (56 * MB)), 0),
    "an answer of 32 MB": (lambda: chat("hello"), 32),
    "an answer of 300 MB": (lambda: chat("hello"), 300),
}


async def ask(port: int, body: bytes, answer_mb: int) -> None:
    """Send one large request over a connection of its own, and read the answer."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=MB)
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nconnection: close\r\nx-answer-mb: {answer_mb}\r\n"
    writer.write(f"{head}content-length: {len(body)}\r\n\r\n".encode())
    for start in range(0, len(body), MB):
        writer.write(body[start : start + MB])
        await writer.drain()
    first, size = await reader.readline(), 0
    while chunk := await reader.read(MB):
        size += len(chunk)
    writer.close()
    if b" 200 " not in first or size < answer_mb * MB:
        raise SystemExit(f"the gateway answered {first!r} and {size} bytes")


async def probe(port: int, done: asyncio.Event) -> float:
    """The longest wait of a small request, seconds."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    longest = 0.0
    while not done.is_set():
        begun = time.perf_counter()
        writer.write(PROBE)
        await reader.readuntil(b"\r\n\r\n")
        longest = max(longest, time.perf_counter() - begun)
        await asyncio.sleep(PAUSE_S)
    writer.close()
    return longest


async def peak_mb(pid: int, done: asyncio.Event) -> float:
    """The most memory that the gateway's processes hold more than now."""
    before = most = sum(map(resident_mb, process_tree(pid)))
    while not done.is_set():
        await asyncio.sleep(0.02)
        try:
            most = max(most, sum(map(resident_mb, process_tree(pid))))
        except OSError:  # a process has ended in between
            continue
    return most - before


async def run(name: str, port: int, pid: int) -> dict[str, float]:
    """One input beside the small requests."""
    done = asyncio.Event()
    watch = asyncio.create_task(peak_mb(pid, done))
    probing = asyncio.create_task(probe(port, done))
    await (asyncio.sleep(1.0) if name == NOTHING else _ask_apart(port, name))
    done.set()
    return {"longest_ms": await probing * 1e3, "memory_mb": await watch}


async def _ask_apart(port: int, name: str) -> None:
    """The large request, sent by another process so that the small ones are not held up by this one."""
    command = [sys.executable, "-m", __spec__.name, "--send", name, "--port", str(port)]
    process = await asyncio.create_subprocess_exec(*command)
    if await process.wait():
        raise SystemExit(1)


async def measure(args: argparse.Namespace) -> list[dict[str, Any]]:
    engine_port, rows = free_port(), []
    url = f"http://127.0.0.1:{engine_port}"
    flags = ["--max-payload-size", str(1 << 30), *args.leafcutter_args.split()]
    async with bulk_engine("127.0.0.1", engine_port), running_gateway([url], *flags, log=args.log) as (gateway, pid):
        port = int(gateway.rpartition(":")[2])
        await ask(port, INPUTS["10 MB of text"][0](), 0)  # starts what is started with the first large body
        for name in args.inputs:
            runs = [await run(name, port, pid) for _ in range(args.runs)]
            longest = [each["longest_ms"] for each in runs]
            row = {"median_ms": statistics.median(longest), "largest_ms": max(longest)}
            rows.append({"input": name, **row, "memory_mb": max(each["memory_mb"] for each in runs)})
            print(json.dumps(rows[-1]), flush=True)
    return rows


def table(rows: Sequence[dict[str, Any]]) -> str:
    heads = ["beside", "longest wait, ms", "largest", "memory, MB"]
    lines = [[row["input"], *(f"{row[key]:.0f}" for key in ("median_ms", "largest_ms", "memory_mb"))] for row in rows]
    return markdown_table(heads, lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--inputs", nargs="+", default=list(INPUTS), choices=INPUTS)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--leafcutter-args", default="", help='more for leafcutter, as in "--processes 2"')
    parser.add_argument("--log", type=Path, default=Path(os.devnull), help="file for the gateway's log")
    parser.add_argument("--out", type=Path, help="file for the figures, JSON")
    parser.add_argument("--send", choices=INPUTS, help=argparse.SUPPRESS)
    parser.add_argument("--port", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.send:
        make, answer_mb = INPUTS[args.send]
        return asyncio.run(ask(args.port, make(), answer_mb))
    rows = asyncio.run(measure(args))
    if args.out:
        write_json(args.out, {**machine(), "rows": rows})
    print(table(rows))


if __name__ == "__main__":
    main()
