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
from tests.support.decision_place import ENGINES, Place, done, request
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
    running = protocol.Resume(1, pack_request(request()), "engine-9", "p", "r", None, 0.0, None)
    return {
        "another version": lambda: [protocol.Hello(protocol.VERSION + 1, "strange")],
        "no hello": lambda: [route],
        "two hellos": lambda: [HELLO, HELLO],
        "no MessagePack": lambda: [HELLO, b"\x03\x00\x00\x00abc"],
        "too long": lambda: [HELLO, b"\xff\xff\xff\xff"],
        "HTTP": lambda: [b"GET / HTTP/1.1\r\nhost: x\r\n\r\n"],
        "a serial twice": lambda: [HELLO, route, route],
        "half a key": lambda: [HELLO, protocol.Route(1, wrong, [])],
        "an unknown engine": lambda: [HELLO, running],
        "an engine that cannot be": lambda: [HELLO, protocol.Unreachable("engine-9")],
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
        edge = RemoteDecider(path, "edge-0", ENGINES, time.monotonic)
        async with edge.running():
            words = f"version {protocol.VERSION + 1} of the protocol, {protocol.VERSION} was expected"
            await until(lambda: words in caplog.text)
            assert not edge.connected
