"""What `fuzz` feeds: the parts of the gateway that see the bytes of clients, engines and other processes.

A target takes one input, and returns whether it was accepted (not refused by the declared error). Anything else that is
raised is a fault.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
import random
import re
import time
from collections.abc import Sequence
from typing import Any

import httpx
import msgspec
from uvicorn.server import ServerState

from benchmarks.micro import fuzz_seeds
from benchmarks.micro.fuzz_mutator import pieces
from router.config import configure
from router.core.router import Router
from router.engines import probe
from router.errors import BadRequest, EngineLost
from router.gateway import apis
from router.gateway.client_connection import Connections
from router.gateway.client_limits import Limits
from router.gateway.engine_connection import EngineConnection
from router.gateway.lenient_json import read_object
from router.gateway.multipart import read_form
from router.gateway.observe import ObservedAnswer
from router.gateway.openai_request import OpenAIRequest, parse_request
from router.gateway.server import server_config
from router.gateway.stream_observer import StreamObserver
from router.processes import protocol
from router.processes.decision_server import DecisionServer, Edge
from router.processes.messages import pack_outcome, pack_request, unpack_request
from router.processes.protocol import LENGTH, VERSION, frame
from router.types import Ending, EngineId, EngineInfo, Outcome

ROUTES = tuple(apis.TABLE)
_STATUS = re.compile(rb"HTTP/1\.1 (\d{3}) ")


class Target:
    """seeds: inputs to begin with. weight: its share of all inputs."""

    seeds: Sequence[bytes]
    weight: float

    async def accepts(self, data: bytes, rng: random.Random) -> bool:
        raise NotImplementedError


class Wire(asyncio.Transport):
    """A transport that keeps what is written to it, and never sends anything."""

    def __init__(self) -> None:
        super().__init__()
        self.written = bytearray()
        self._closing = False

    def write(self, data: Any) -> None:
        self.written += data

    def close(self) -> None:
        self._closing = True

    abort = close

    def is_closing(self) -> bool:
        return self._closing

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        """Nobody reads it."""

    def get_write_buffer_size(self) -> int:
        return 0

    pause_reading = resume_reading = write_eof


# --- what clients send ------------------------------------------------------------------------------------------------


async def _answer(_: Any, receive: Any, send: Any) -> None:
    """An application that answers every request."""
    while (message := await receive()).get("more_body"):
        pass
    if message["type"] == "http.disconnect":
        return
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"{}"})


class ClientTarget(Target):
    """The connection of a client, behind which every request is answered."""

    seeds, weight = fuzz_seeds.REQUEST_SEEDS, 0.15

    def __init__(self) -> None:
        self._config = server_config(
            configure(), _answer, http=Connections(Limits(connections=9), lambda _: None), lifespan="off"
        )
        self._config.load()

    async def accepts(self, data: bytes, rng: random.Random) -> bool:
        wire, state = Wire(), ServerState()
        make: Any = self._config.http_protocol_class
        connection = make(config=self._config, server_state=state, app_state={}, _loop=asyncio.get_running_loop())
        connection.connection_made(wire)
        for piece in pieces(data, rng):
            if wire.is_closing():
                break
            connection.data_received(piece)
            await asyncio.sleep(0)
        while (busy := len(wire.written)) and not wire.is_closing():  # until nothing more is answered
            await asyncio.sleep(0)
            if len(wire.written) == busy:
                break
        connection.eof_received()
        wire.close()
        connection.connection_lost(None)
        if state.tasks:
            await asyncio.wait(state.tasks, timeout=5)
        assert not state.tasks, "a request is left"
        assert not state.connections, "the connection is left"
        statuses = {int(status) for status in _STATUS.findall(wire.written)} - {100}
        assert not wire.written or b"HTTP/1.1 ".startswith(wire.written[:9]), bytes(wire.written)
        assert all(status < 500 or status == 505 for status in statuses), statuses
        return 200 in statuses


class BodyTarget(Target):
    """The body of a request, on any route."""

    seeds, weight = fuzz_seeds.BODY_SEEDS, 0.3

    async def accepts(self, data: bytes, rng: random.Random) -> bool:
        form = rng.random() < 0.1
        try:
            request = parse_request(
                data,
                route=rng.choice(ROUTES),
                headers={b"content-type": fuzz_seeds.BOUNDARY if form else b"application/json"},
                request_id="r",
                block_tokens=16,
                aliases={"m": "n"} if rng.random() < 0.2 else {},
                salt=b"salt" if rng.random() < 0.2 else None,
            )
        except BadRequest as error:
            json.loads(error.body())
            return False
        self._check(request, data, form)
        return True

    def _check(self, request: OpenAIRequest, data: bytes, form: bool) -> None:
        content = b"".join(request.body_for_engine(data))
        if request.edit is None:
            assert content == data
        elif not form:
            assert isinstance(json.loads(content), dict)
        packed = msgspec.msgpack.decode(msgspec.msgpack.encode(pack_request(request.parsed)), type=protocol.Request)
        assert unpack_request(packed).prompt.keys == request.parsed.prompt.keys


class FormTarget(Target):
    """A form and its content type."""

    seeds, weight = (fuzz_seeds.FORM + b"--b-1--\r\n",), 0.08

    async def accepts(self, data: bytes, rng: random.Random) -> bool:
        kind = fuzz_seeds.BOUNDARY if rng.random() < 0.8 else data[: rng.randint(0, 90)]
        try:
            form = read_form(data, kind)
        except BadRequest:
            return False
        for name, (begin, end) in form.places.items():
            assert 0 <= begin <= end <= len(data), name
        return bool(form.fields)


# --- what engines send ------------------------------------------------------------------------------------------------

_ASKED = {
    route: parse_request(
        json.dumps(fuzz_seeds.BODIES.get(route, {"model": "m"})).encode(),
        route=route,
        headers={},
        request_id="r",
        block_tokens=16,
    )
    for route in ROUTES
}


def check_observed(observed: ObservedAnswer, route: str) -> None:
    """Whatever was observed can be counted, logged and told."""
    usage = observed.usage
    for count in (usage.prompt_tokens, usage.cached_tokens, usage.output_tokens):
        assert count is None or 0 <= count < 1 << 53, usage
    assert 400 <= observed.error_status <= 599
    if observed.failed:
        json.loads(observed.error_body())
    fields = observed.message.fields()
    keys = _ASKED[route].reply_keys(fields, observed.message.token_ids)
    assert all(0 <= key < 1 << 64 for key in keys)
    outcome = Outcome(Ending.OK, 1.0, None, usage.prompt_tokens, usage.cached_tokens, usage.output_tokens, keys)
    frame(pack_outcome(1, outcome, whole=True))


class AnswerTarget(Target):
    """A whole answer, on any route."""

    seeds, weight = fuzz_seeds.ANSWER_SEEDS, 0.15

    async def accepts(self, data: bytes, rng: random.Random) -> bool:
        route = rng.choice(ROUTES)
        document = read_object(data)
        if document is None:
            return False
        observed = apis.find(route).answer()
        observed.read(document)
        check_observed(observed, route)
        return True


class StreamTarget(Target):
    """A stream, on any route, as it arrives in pieces. What it says does not depend on where it is cut."""

    seeds, weight = fuzz_seeds.STREAM_SEEDS, 0.15

    async def accepts(self, data: bytes, rng: random.Random) -> bool:
        route, hides = rng.choice(ROUTES), rng.random() < 0.5
        observed, shown = self._read(route, pieces(data, rng), hides)
        if not hides:
            assert shown == data
        check_observed(observed, route)
        at_once, shown_at_once = self._read(route, [data], hides)
        assert (observed.usage, observed.failed, observed.done) == (at_once.usage, at_once.failed, at_once.done)
        assert shown.split() == shown_at_once.split()  # through CR LF, a cut may leave a line end more
        return observed.started

    def _read(self, route: str, chunks: Sequence[bytes], hides: bool) -> tuple[ObservedAnswer, bytes]:
        observer = StreamObserver(apis.find(route).answer(), hide_usage=hides)
        shown = b"".join([*map(observer.feed, chunks), observer.finish()])
        observer.read_rest()
        return observer.observed, shown


class EngineTarget(Target):
    """The connection to an engine, from the request to the end of the answer."""

    seeds, weight = fuzz_seeds.ENGINE_SEEDS, 0.1

    async def accepts(self, data: bytes, rng: random.Random) -> bool:
        released: list[EngineConnection] = []
        connection = EngineConnection(released.append, lambda _: None)
        connection.connection_made(Wire())
        asking = asyncio.create_task(self._ask(connection))
        await asyncio.sleep(0)
        for piece in pieces(data, rng):
            connection.data_received(piece)
            if rng.random() < 0.5:
                await asyncio.sleep(0)
        if not connection.closed:
            connection.connection_lost(None)
        async with asyncio.timeout(5):
            return await asking

    async def _ask(self, connection: EngineConnection) -> bool:
        due_s = asyncio.get_running_loop().time() + 60
        try:
            await connection.send(b"POST / HTTP/1.1\r\ncontent-length: 2\r\n\r\n", [b"{}"], due_s)
            assert 200 <= connection.status <= 599
            while await connection.read(due_s):
                pass
        except EngineLost:
            return False
        finally:
            connection.done()
        return True


class FactsTarget(Target):
    """What an engine answers to the gateway's own questions."""

    seeds, weight = fuzz_seeds.FACT_SEEDS, 0.02

    async def accepts(self, data: bytes, rng: random.Random) -> bool:
        others = itertools.cycle(rng.sample(fuzz_seeds.FACT_SEEDS, len(fuzz_seeds.FACT_SEEDS)))

        def answer(request: httpx.Request) -> httpx.Response:
            right = {"/v1/models": 0, "/version": 1, "/metrics": 2}[request.url.path]
            content = data if rng.random() < 0.6 else fuzz_seeds.FACT_SEEDS[right]
            return httpx.Response(
                200 if rng.random() < 0.95 else rng.randint(200, 599), content=content or next(others)
            )

        async with httpx.AsyncClient(transport=httpx.MockTransport(answer)) as client:
            assert all(rank >= 0 for rank in await probe.read_ranks(client, "http://e:1"))
            try:
                info, oddities = await probe.read_report(client, "http://e:1", "http://e:2/metrics")
            except probe.BadAnswer:
                return False
        assert all(oddity.isprintable() for oddity in oddities)
        router = _router()
        router.set_info(ENGINES[0], info)
        json.dumps(router.status().engines[ENGINES[0]].info.models)
        return True


# --- what other processes send ----------------------------------------------------------------------------------------

ENGINES = EngineId("engine-0"), EngineId("engine-1")
ADDRESSES = {ENGINES[0]: "http://127.0.0.1:1", ENGINES[1]: "http://127.0.0.1:2"}


def _router() -> Router:
    config = configure(policy="lbgr", lbgr_cold_samples=0, decision_log_size=100)
    router = Router(config.routing, config.policies, rng=random.Random(1))
    for engine in ENGINES:
        router.add_engine(engine)
        router.set_info(engine, EngineInfo(models=("m",)))
        router.set_health(engine, True)
    return router


def _from_edge() -> list[bytes]:
    """Messages of an edge, without the length of their frames."""
    request = pack_request(_ASKED[apis.CHAT].parsed)
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
        self._server = DecisionServer(_router(), ADDRESSES, time.monotonic)
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


TARGETS: dict[str, type[Target]] = {
    "requests": ClientTarget,
    "bodies": BodyTarget,
    "forms": FormTarget,
    "answers": AnswerTarget,
    "streams": StreamTarget,
    "engines' HTTP": EngineTarget,
    "engines' facts": FactsTarget,
    "messages of processes": ProtocolTarget,
}
