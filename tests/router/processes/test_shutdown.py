"""Signals to a real gateway, of one process and of several: not ready first, then a grace, then a clean cut."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest

from tests.support.fake_engine import Script
from tests.support.gateway_server import BODIES, CHAT, error_event
from tests.support.process_gateway import Processes, gated, processes, streams, until

COUNTS = pytest.mark.parametrize("count", [1, 2])


@asynccontextmanager
async def ready(script: Script, count: int, tmp_path: Path, *flags: str) -> AsyncIterator[Processes]:
    """A gateway that is ready."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    options = ["--port", str(port), *flags]
    async with processes(script, count=count, tmp_path=tmp_path, flags=options) as gateway:
        await until(lambda: status_is(gateway, "/readiness", 200))
        yield gateway


async def status_is(gateway: Processes, path: str, status: int) -> bool:
    """Whether a new connection gets that status."""
    try:
        return (await gateway.client.get(path)).status_code == status
    except httpx.TransportError:
        return False


@COUNTS
async def test_first_it_is_not_ready_and_serves_on(count: int, tmp_path: Path) -> None:
    flags = ("--shutdown-pause-secs", "3")
    async with ready(Script(), count, tmp_path, *flags) as gateway:
        gateway.process.send_signal(signal.SIGTERM)
        await until(lambda: status_is(gateway, "/readiness", 503))
        assert (await gateway.client.get("/readiness")).json() == {"status": "shutting down"}
        assert (await gateway.client.head("/readiness")).status_code == 503
        assert (await gateway.client.get("/health")).status_code == 200
        answers = [await gateway.post(stream=stream) for stream in (False, True)]
        assert [answer.status_code for answer in answers] == [200, 200]
        assert await gateway.process.wait() == 0


@COUNTS
async def test_ctrl_c_has_no_pause(count: int, tmp_path: Path) -> None:
    async with ready(Script(), count, tmp_path, "--shutdown-pause-secs", "600") as gateway:
        assert await gateway.stop(signal.SIGINT) == 0


@COUNTS
async def test_after_the_grace_clients_are_told(count: int, tmp_path: Path) -> None:
    flags = ("--shutdown-grace-period-secs", "0.5", "--max-concurrent-requests", str(3 * count))
    async with (
        ready(gated(), count, tmp_path, *flags) as gateway,
        streams(gateway.url, 2) as begun,
        httpx.AsyncClient(base_url=gateway.url, timeout=30, verify=False) as client,
    ):
        whole = [asyncio.create_task(client.post(CHAT, json=BODIES[CHAT])) for _ in range(2 * count)]
        while sum(engine.running for engine in gateway.engines) < 3:
            await asyncio.sleep(0.02)
        assert await gateway.stop() == 0
        for stream in begun:
            assert error_event(await stream.rest)["code"] == "shutting_down"
        for answer in await asyncio.gather(*whole):
            assert (answer.status_code, answer.json()["error"]["code"]) == (503, "shutting_down")
            assert answer.headers["retry-after"] == "1"
        await until(lambda: _idle(gateway))


async def _idle(gateway: Processes) -> bool:
    return all(engine.running == 0 for engine in gateway.engines)


@COUNTS
@pytest.mark.parametrize("pause", ["0", "600"])
async def test_a_second_signal_waits_for_nothing(pause: str, count: int, tmp_path: Path) -> None:
    flags = ("--shutdown-grace-period-secs", "600", "--shutdown-pause-secs", pause)
    async with ready(gated(), count, tmp_path, *flags) as gateway, streams(gateway.url, 2) as begun:
        gateway.process.send_signal(signal.SIGTERM)
        await asyncio.sleep(0.3)
        assert gateway.process.returncode is None
        gateway.process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(10):
            assert await gateway.process.wait() == 0
        for stream in begun:
            assert error_event(await stream.rest)["code"] == "shutting_down"


@COUNTS
async def test_streams_that_end_within_the_grace_are_whole(count: int, tmp_path: Path) -> None:
    async with ready(gated(), count, tmp_path) as gateway, streams(gateway.url, 3) as begun:
        gateway.process.send_signal(signal.SIGTERM)
        await until(lambda: _refuses(gateway))
        gate = gateway.engines[0].script.gate
        assert gate is not None
        gate.set()
        assert all([await stream.complete() for stream in begun])
        assert await gateway.process.wait() == 0


async def _refuses(gateway: Processes) -> bool:
    try:
        await gateway.client.get("/health")
    except httpx.TransportError:
        return True
    return False


async def test_a_client_that_reads_nothing_does_not_hold_up_the_end(tmp_path: Path) -> None:
    script = Script(tokens=("x" * 100_000,) * 300)
    async with ready(script, 1, tmp_path, "--shutdown-grace-period-secs", "0.5") as gateway:
        host, port = gateway.url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port))) as deaf:
            body = json.dumps({**BODIES[CHAT], "stream": True}).encode()
            deaf.sendall(f"POST {CHAT} HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n\r\n".encode() + body)
            await gateway.engines[0].arrived.wait()
            assert await gateway.stop() == 0
