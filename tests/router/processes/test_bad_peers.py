"""Peers that break the rules of the protocol are cut off, and disturb nobody else."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from router.processes import protocol
from router.processes.messages import pack_request
from router.processes.protocol import frame
from router.processes.remote_decider import RemoteDecider
from router.types import Ending
from tests.support.decision_place import Place, done, request
from tests.support.gateway_server import until


class Peer:
    """A peer that says whatever it likes."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    def say(self, *messages: protocol.FromEdge | bytes) -> None:
        for message in messages:
            self._writer.write(message if isinstance(message, bytes) else frame(message))

    async def cut(self) -> bool:
        """Whether the connection ends."""
        try:
            async with asyncio.timeout(2):
                await self._reader.read()
                return True
        except TimeoutError:
            return False
        except ConnectionError:
            return True
        finally:
            self._writer.close()


async def peer(path: str) -> Peer:
    return Peer(*await asyncio.open_unix_connection(path))


HELLO = protocol.Hello(protocol.VERSION, "strange")


def bad_frames() -> dict[str, Callable[[], list[protocol.FromEdge | bytes]]]:
    route = protocol.Route(1, pack_request(request()), [])
    wrong = pack_request(request())
    wrong.keys = b"123"
    return {
        "another version": lambda: [protocol.Hello(protocol.VERSION + 1, "strange")],
        "no hello": lambda: [route],
        "two hellos": lambda: [HELLO, HELLO],
        "no MessagePack": lambda: [HELLO, b"\x03\x00\x00\x00abc"],
        "too long": lambda: [HELLO, b"\xff\xff\xff\xff"],
        "HTTP": lambda: [b"GET / HTTP/1.1\r\nhost: x\r\n\r\n"],
        "a serial twice": lambda: [HELLO, route, route],
        "half a key": lambda: [HELLO, protocol.Route(1, wrong, [])],
        "an answer": lambda: [HELLO, frame(protocol.Welcome(1, False))],
    }


@pytest.mark.parametrize("name", bad_frames())
async def test_a_peer_that_breaks_a_rule_is_cut_off_and_disturbs_nobody(
    name: str, place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    edge = await place.edge()
    kept = await edge.route(request(), [])
    strange = await peer(place.path)
    strange.say(*bad_frames()[name]())
    assert await strange.cut()
    assert "cut off" in caplog.text
    assert edge.connected
    await until(lambda: place.router.in_flight == 1)
    assert (await edge.route(request(), [])).reason == "lowest_cost"
    edge.complete(kept.booking, done())


async def test_random_bytes_disturb_nobody(place: Place) -> None:
    edge, chance = await place.edge(), random.Random(3)
    valid = frame(HELLO) + frame(protocol.Route(1, pack_request(request()), [])) + frame(protocol.FirstToken(1, 1.0))
    for _ in range(100):
        content = bytearray(valid)
        for _ in range(chance.randint(1, 8)):
            content[chance.randrange(len(content))] = chance.randrange(256)
        strange = await peer(place.path)
        strange.say(bytes(content))
        strange._writer.close()
    await until(lambda: place.router.in_flight == 0)
    assert (await edge.route(request(), [])).reason == "lowest_cost"


async def test_an_edge_refuses_a_router_process_of_another_version(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def later(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(frame(protocol.Welcome(protocol.VERSION + 1, False)))
        await reader.read()
        writer.close()

    path = str(tmp_path / "decisions")
    async with await asyncio.start_unix_server(later, path):
        edge = RemoteDecider(path, "edge-0", time.monotonic)
        async with edge.running():
            words = f"version {protocol.VERSION + 1} of the protocol, {protocol.VERSION} was expected"
            await until(lambda: words in caplog.text)
            assert not edge.connected


async def test_what_is_told_of_an_engine_that_has_left_is_ignored(place: Place) -> None:
    gone = "engine-9"
    edge = await peer(place.path)
    edge.say(HELLO, protocol.Unreachable(gone), protocol.Heard(gone))
    edge.say(protocol.Resume(1, pack_request(request()), gone, "p", "r", None, 0.0, None))
    edge.say(protocol.Complete(1, Ending.OK, time.monotonic()), protocol.Route(2, pack_request(request()), [gone]))
    await until(lambda: place.router.in_flight == 1)  # so that the edge is still heard
    edge._writer.close()


ADDRESS = "http://127.0.0.1:1"
BAD_FLEETS = {
    "no address": protocol.Engine("engine-0", "127.0.0.1:1", True, []),
    "a path": protocol.Engine("engine-0", f"{ADDRESS}/v1", True, []),
    "another spelling": protocol.Engine("engine-0", "HTTP://127.0.0.1:1", True, []),
    "a bad rank": protocol.Engine("engine-0", f"{ADDRESS}#1x", True, []),
    "too long": protocol.Engine("engine-0", "http://" + "a" * 3000, True, []),
    "no name": protocol.Engine("", ADDRESS, True, []),
    "a name of two lines": protocol.Engine("engine-0\n", ADDRESS, True, []),
    "twice": protocol.Engine("engine-1", ADDRESS, True, []),
}


@pytest.mark.parametrize("name", BAD_FLEETS)
async def test_an_edge_cuts_off_a_router_process_that_tells_of_a_fleet_that_cannot_be(
    name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    good = protocol.Engine("engine-1", "http://127.0.0.1:2", True, [])

    async def router(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(frame(protocol.Welcome(protocol.VERSION, False)) + frame(protocol.Fleet("lbgr", [good])))
        await reader.readexactly(4)
        writer.write(frame(protocol.Fleet("lbgr", [good, BAD_FLEETS[name]])))
        await reader.read()
        writer.close()

    path = str(tmp_path / "decisions")
    async with await asyncio.start_unix_server(router, path):
        edge = RemoteDecider(path, "edge-0", time.monotonic)
        async with edge.running():
            await edge.known.wait()
            await until(lambda: "cut off the router process" in caplog.text)
            assert edge.addresses == {"engine-1": "http://127.0.0.1:2"}
            assert (await edge.route(request(), [])).engine == "engine-1"
