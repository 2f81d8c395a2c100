"""Many streams at once for as long as you like: whether one chunk is lost, and whether the gateway gives all back.

    .venv/bin/python -m benchmarks.live.endurance --seconds 60 --streams 1000

A real `leafcutter serve` in front of two engines whose chunks are numbered. First, so many clients ask for one stream
after the other. Some leave in the middle, some ask for the usage. Every stream is checked to the byte. Meanwhile the
memory and the file descriptors of the gateway's processes are counted; the first third of the time is the warm-up.

Then, before a gateway that has just started, clients ask for huge streams and never read. Nobody may be held up by
them, and after the timeout of requests the gateway has to let them go, though they stay connected.

The exit status is 1 if a stream was not right or if the gateway keeps what it should have given back.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import os
import re
import resource
import socket
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import uvloop

from benchmarks.live.gateway_process import free_port, process_tree, resident_mb, running_gateway
from benchmarks.live.lean_load import Chats, connected
from benchmarks.live.numbered_engine import numbered_engines
from benchmarks.live.numbered_load import PROMPT_BYTES, Clients, Tally
from benchmarks.report import conclude, markdown_table

GAP_S = 0.1
CHUNKS = 40  # of a stream
DECISIONS = 2000  # the decision log is full within the warm-up
HUGE_CHUNK_BYTES, HUGE_CHUNKS = 8192, 12_800  # 100 MB
PAUSE_S = 0.02  # between two requests beside clients that never read
SETTLE_S = 10.0  # idle connections to engines close after 4 s
STAY_S = 45.0  # clients that never read stay so long, for the gateway cuts them off after 30 s
METRICS = b"GET /metrics HTTP/1.1\r\nhost: x\r\n\r\n"
_IN_FLIGHT = re.compile(rb"^leafcutter_in_flight{.*} (\S+)$", re.MULTILINE)


@dataclass(frozen=True)
class Footprint:
    """What the gateway's processes hold: MB of memory and open file descriptors, at a second of the clock."""

    at_s: float
    memory_mb: float
    descriptors: int


def footprint(pid: int) -> Footprint:
    while True:
        try:
            tree = process_tree(pid)
            memory_mb = sum(map(resident_mb, tree))
            return Footprint(time.monotonic(), memory_mb, sum(len(os.listdir(f"/proc/{each}/fd")) for each in tree))
        except (FileNotFoundError, IndexError):  # a process has ended in between
            continue


async def watch(pid: int, found: list[Footprint], every_s: float) -> None:
    while True:
        found.append(footprint(pid))
        await asyncio.sleep(every_s)


async def settled(pid: int) -> Footprint:
    """That of a gateway that has just started: the least of a second, as checks of the engines come between."""
    found = []
    for _ in range(10):
        await asyncio.sleep(0.1)
        found.append(footprint(pid))
    return min(found, key=lambda each: each.descriptors)


async def descriptors_back(pid: int, before: int, within_s: float = SETTLE_S) -> int:
    """How many there are once they are no more than before, or when that has taken too long."""
    end_s = time.monotonic() + within_s
    while True:
        now = footprint(pid).descriptors
        if now <= before or time.monotonic() >= end_s:
            return now
        await asyncio.sleep(0.2)


def memory_of(samples: Sequence[Footprint]) -> dict[str, float]:
    """Memory after the first third of the samples, at their end, at its most, and its slope between."""
    warm = samples[len(samples) // 3 :]
    slope = statistics.linear_regression([each.at_s for each in warm], [each.memory_mb for each in warm]).slope
    return {
        "warm_mb": warm[0].memory_mb,
        "end_mb": warm[-1].memory_mb,
        "largest_mb": max(each.memory_mb for each in samples),
        "slope_mb_per_minute": slope * 60,
    }


# --- clients that read ------------------------------------------------------------------------------------------------


async def streams(args: argparse.Namespace, engines: Sequence[str]) -> dict[str, Any]:
    flags = ["--policy", "lbgr", "--decision-log-size", str(DECISIONS), *args.leafcutter_args.split()]
    async with running_gateway(engines, *flags, log=args.log) as (url, pid):
        before, samples = (await settled(pid)).descriptors, list[Footprint]()
        clients = Clients(url, CHUNKS, GAP_S, itertools.count().__next__)
        watching = asyncio.create_task(watch(pid, samples, min(1.0, args.seconds / 30)))
        await clients.run(args.streams, args.seconds)
        watching.cancel()
        after = await descriptors_back(pid, before)
    tally = clients.tally
    return {
        "ended": tally.whole,
        "left": tally.left,
        "with_usage": tally.with_usage,
        "chunks": tally.chunks,
        "faults": dict(tally.faults),
        **memory_of(samples),
        "descriptors_before": before,
        "descriptors_most": max(each.descriptors for each in samples),
        "descriptors_after": after,
    }


# --- clients that never read ------------------------------------------------------------------------------------------


async def non_readers(args: argparse.Namespace, engines: Sequence[str]) -> dict[str, Any]:
    flags = ["--policy", "lbgr", "--request-timeout-secs", str(args.timeout_s), *args.leafcutter_args.split()]
    async with running_gateway(engines, *flags, log=args.log) as (url, pid):
        before, samples = await settled(pid), list[Footprint]()
        watching = asyncio.create_task(watch(pid, samples, 0.1))
        begun_s = time.monotonic()
        with ExitStack() as clients:
            for number in range(args.non_readers):
                clients.enter_context(never_reads(url, number))
            small, longest_s = await ask_beside(url, begun_s + args.timeout_s)
            in_flight = await none_in_flight(url)
            over_s = time.monotonic() - begun_s
            while_there = await descriptors_back(pid, before.descriptors, STAY_S)
        watching.cancel()
        after = await descriptors_back(pid, before.descriptors)
    return {
        "clients": args.non_readers,
        "memory_mb": max(each.memory_mb for each in samples) - before.memory_mb,
        "small_streams": small.whole,
        "small_longest_ms": longest_s * 1e3,
        "faults": dict(small.faults),
        "in_flight": in_flight,
        "over_s": over_s,
        "descriptors_before": before.descriptors,
        "descriptors_most": max(each.descriptors for each in samples),
        "descriptors_while_there": while_there,
        "descriptors_after": after,
    }


def never_reads(url: str, number: int) -> socket.socket:
    """A client that has asked for a huge stream."""
    address = urlsplit(url)
    client = socket.create_connection((address.hostname, address.port))
    client.sendall(Chats(PROMPT_BYTES, HUGE_CHUNKS, chunk_bytes=HUGE_CHUNK_BYTES).request(number))
    return client


async def ask_beside(url: str, end_s: float) -> tuple[Tally, float]:
    """Ask for streams of one chunk, one after the other. Returns what came, and the longest time that one took."""
    tally, chats, longest_s = Tally(), Chats(PROMPT_BYTES, 1), 0.0
    async with connected([url], 1) as (connection,):
        for number in itertools.count():
            begun_s = time.monotonic()
            tally.take(await connection.ask(chats.request(number)), 1, usage=False)
            longest_s = max(longest_s, time.monotonic() - begun_s)
            await asyncio.sleep(PAUSE_S)
            if time.monotonic() >= end_s:
                break
    return tally, longest_s


async def none_in_flight(url: str) -> int:
    """How many requests are in flight once there are none, or when that has taken too long."""
    end_s = time.monotonic() + SETTLE_S
    async with connected([url], 1) as (connection,):
        while True:
            count = sum(int(float(each)) for each in _IN_FLIGHT.findall(await connection.ask(METRICS)))
            if not count or time.monotonic() >= end_s:
                return count
            await asyncio.sleep(PAUSE_S)


# --- the whole --------------------------------------------------------------------------------------------------------


async def measure(args: argparse.Namespace) -> dict[str, Any]:
    hosts, port = ("127.0.0.1", "127.0.0.2"), free_port()
    engines = [f"http://{host}:{port}" for host in hosts]
    async with numbered_engines(hosts, port, gap_s=GAP_S):
        found = {"streams": await streams(args, engines), "non_readers": await non_readers(args, engines)}
    return {"seconds": args.seconds, "clients": args.streams, "timeout_s": args.timeout_s, **found}


def wrong(figures: Mapping[str, Any]) -> list[str]:
    """What should not be so, in sentences."""
    found = []
    for name in ("streams", "non_readers"):
        part = figures[name]
        found += [f"{name}: {count} faults of the kind: {kind}." for kind, count in part["faults"].items()]
        for key in ("descriptors_while_there", "descriptors_after"):
            if part.get(key, 0) > part["descriptors_before"]:
                found.append(f"{name}: {key} are {part[key]}, and were {part['descriptors_before']} before.")
    if count := figures["non_readers"]["in_flight"]:
        found.append(f"non_readers: {count} requests are in flight after the timeout.")
    return found


def table(figures: Mapping[str, Any]) -> str:
    read, unread = figures["streams"], figures["non_readers"]
    memory = f"{read['warm_mb']:.0f}, {read['end_mb']:.0f}, {read['largest_mb']:.0f}"
    rows = [
        ("streams to their end, left in the middle", f"{read['ended']:,}, {read['left']:,}"),
        ("chunks", f"{read['chunks']:,}"),
        ("lost, doubled, out of order or otherwise wrong", f"{sum(read['faults'].values())}"),
        ("memory after the warm-up, at the end, at most, MB", memory),
        ("its slope, MB a minute", f"{read['slope_mb_per_minute']:.1f}"),
        ("descriptors before, at most, after", _descriptors(read, "before", "most", "after")),
        ("memory for clients that never read, MB", f"{unread['memory_mb']:.0f} for {unread['clients']}"),
        (
            "streams beside them, the longest in ms",
            f"{unread['small_streams']:,}, {unread['small_longest_ms']:.0f}",
        ),
        ("none of them in flight after, s", f"{unread['over_s']:.1f}"),
        (
            "descriptors before, at most, after the timeout, after they have left",
            _descriptors(unread, "before", "most", "while_there", "after"),
        ),
    ]
    return markdown_table(["", ""], rows)


def _descriptors(part: Mapping[str, Any], *names: str) -> str:
    return ", ".join(f"{part[f'descriptors_{name}']:,}" for name in names)


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--streams", type=int, default=1000, help="clients that read, each with one stream at a time")
    parser.add_argument("--non-readers", type=int, default=50)
    parser.add_argument("--timeout-s", type=float, default=10.0, help="of the requests of clients that never read")
    parser.add_argument("--leafcutter-args", default="", help='more for leafcutter, as in "--processes 2"')
    parser.add_argument("--log", type=Path, default=Path(os.devnull), help="file for the gateway's log")
    parser.add_argument("--out", type=Path, help="file for the figures, JSON")
    return parser.parse_args(argv)


def run(args: argparse.Namespace) -> dict[str, Any]:
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # of this process and of those that it starts
    return uvloop.run(measure(args))


def main() -> int:
    args = parse()
    figures = run(args)
    return conclude(figures, args.out, table(figures), wrong(figures))


if __name__ == "__main__":
    sys.exit(main())
