"""The part of `fuzz` that sees what the other processes of a gateway send."""

from __future__ import annotations

import asyncio
import logging
import random
import time

from benchmarks.micro.fuzz_engines import ASKED
from benchmarks.micro.fuzz_mutator import pieces
from benchmarks.micro.fuzz_target import ADDRESSES, ENGINES, Target, Wire, make_router
from router.gateway import apis
from router.processes import protocol
from router.processes.decision_server import DecisionServer, Edge
from router.processes.messages import pack_request
from router.processes.protocol import LENGTH, VERSION, frame
from router.types import Ending


def _from_edge() -> list[bytes]:
    """Messages of an edge, without the length of their frames."""
    request = pack_request(ASKED[apis.CHAT].parsed)
    line = protocol.Line(
        2.0, 1.5, 40, 3, 32, b"x" * 8, 4, 40, None, True, apis.CHAT, b"m", None, Ending.OK, "engine-0", "lbgr"
    )
    messages: list[protocol.FromEdge] = [
        protocol.Route(1, request, []),
        protocol.Route(2, request, ["engine-0"]),
        protocol.FirstToken(1, 1.0),
        protocol.Complete(1, Ending.OK, 2.0, 1.5, 40, 32, 3, b"x" * 16),
        protocol.Unreachable("engine-1"),
        protocol.Heard("engine-0"),
        protocol.Resume(3, request, "engine-0", "lbgr", "", None, 1.0, None),
        protocol.Arrived(4, 1.0),
        protocol.Ended(4, line),
        protocol.Hello(VERSION, "again"),
    ]
    return [frame(each)[LENGTH.size :] for each in messages]


class ProtocolTarget(Target):
    """Messages of an edge that has greeted, as the router process takes them."""

    seeds, weight = _from_edge(), 0.05

    def __init__(self) -> None:
        self._server = DecisionServer(make_router(), ADDRESSES, time.monotonic)
        self._faults: list[str] = []
        handler = logging.Handler(logging.ERROR)
        handler.emit = lambda record: self._faults.append(record.getMessage())  # type: ignore[method-assign]
        log = logging.getLogger("leafcutter.processes")
        log.handlers, log.propagate = [handler], False

    async def accepts(self, data: bytes, rng: random.Random) -> bool:
        self._faults.clear()
        edge, wire = Edge(self._server), Wire()
        edge.link.connection_made(wire)
        earlier = (rng.choice(self.seeds) for _ in range(rng.randint(0, 2)))
        framed = b"".join(LENGTH.pack(len(each)) + each for each in (*earlier, data))
        for piece in pieces(frame(protocol.Hello(VERSION, "edge-0")) + (framed if rng.random() < 0.9 else data), rng):
            edge.link.data_received(piece)
        await asyncio.sleep(0)
        edge.link.connection_lost(None)
        assert not self._faults, self._faults
        router = self._server.router
        assert router.in_flight == 0
        router.set_health(ENGINES[1], True)
        return not wire.is_closing()
