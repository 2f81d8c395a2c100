"""Requests leave no garbage in cycles, however they end, and the collector is set up while the gateway runs."""

from __future__ import annotations

import asyncio
import gc
import json
from collections import Counter
from collections.abc import Iterator
from functools import partial

import pytest

from router.gateway import garbage
from tests.support.fake_engine import REFUSAL, Script
from tests.support.gateway_server import BODIES, CHAT, Served, served

REQUESTS = 40


@pytest.fixture
def kept() -> Iterator[None]:
    """Garbage in cycles is kept, so that the test can look at it."""
    gc.disable()
    yield
    gc.set_debug(0)
    gc.garbage.clear()
    gc.enable()


async def ask(gateway: Served, *, stream: bool, whole: bool) -> None:
    """Send one request on a connection of its own, over a bare socket. Read the `whole` answer, or leave at its first
    event."""
    body = json.dumps({**BODIES[CHAT], "stream": stream}).encode()
    host, port = gateway.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    head = f"POST {CHAT} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {len(body)}\r\n\r\n"
    writer.write(head.encode() + body)
    await (reader.read() if whole else reader.readuntil(b"data: "))
    writer.close()
    await writer.wait_closed()


@pytest.mark.usefixtures("kept")
@pytest.mark.parametrize(
    ("scripts", "stream", "whole"),
    [
        ([Script(), Script()], False, True),
        ([Script(), Script()], True, True),
        ([Script(fault="hang", after=2)], True, False),
        ([Script(fault="cut"), Script()], False, True),
        ([Script(fault="cut", after=2)], True, True),
        ([Script(status=503, error=REFUSAL), Script()], True, True),
        ([Script(status=400, error=REFUSAL)], False, True),
    ],
    ids=["whole", "stream", "left", "engine lost", "stream torn", "busy", "refused"],
)
async def test_a_request_leaves_no_garbage_in_cycles(scripts: list[Script], stream: bool, whole: bool) -> None:
    async with served(*scripts, policy="lbgr") as gateway:
        for _ in range(5):  # what is made once and kept
            await ask(gateway, stream=stream, whole=whole)
        gc.collect()
        gc.set_debug(gc.DEBUG_SAVEALL)
        for _ in range(REQUESTS):
            await ask(gateway, stream=stream, whole=whole)
        await asyncio.sleep(0.1)
        gc.collect()
        # A few of one time or another are the test's own; from every request there would be at least REQUESTS.
        assert len(gc.garbage) < REQUESTS, Counter(type(each).__name__ for each in gc.garbage).most_common(5)


async def test_the_collector_is_set_up_and_left_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(garbage, "SET_ASIDE_S", 0.01)
    before, frozen = gc.get_threshold(), gc.get_freeze_count()
    tending = asyncio.create_task(garbage.tend(lambda: False))
    await asyncio.sleep(0.05)
    assert gc.get_threshold() == (garbage.YOUNG, garbage.MIDDLE, garbage.NEVER)
    kept: list[list[object]] = [[] for _ in range(5000)]
    gathered = gc.get_freeze_count()
    await asyncio.sleep(0.05)
    assert gc.get_freeze_count() >= gathered + len(kept)
    tending.cancel()
    with pytest.raises(asyncio.CancelledError):
        await tending
    assert (gc.get_threshold(), gc.get_freeze_count()) == (before, frozen)


class Cycle:
    def __init__(self) -> None:
        self.me = self


async def test_what_is_set_aside_is_looked_at_when_nobody_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    for constant, value in (("SET_ASIDE_S", 0.01), ("IDLE_S", 0.02), ("FULL_S", 0.1)):
        monkeypatch.setattr(garbage, constant, value)
    for idle, left in ((False, True), (True, False)):
        tending = asyncio.create_task(garbage.tend(partial(bool, idle)))
        cycle = Cycle()
        await asyncio.sleep(0.05)  # it is set aside while it is in use
        address = id(cycle)
        del cycle
        await asyncio.sleep(0.3)
        gc.unfreeze()
        assert any(id(each) == address and isinstance(each, Cycle) for each in gc.get_objects()) is left
        tending.cancel()
        gc.collect()
