"""The parts of `fuzz` that see what clients send."""

from __future__ import annotations

import asyncio
import json
import random
import re
from typing import Any

import msgspec
from uvicorn.server import ServerState

from benchmarks.micro import fuzz_seeds
from benchmarks.micro.fuzz_mutator import pieces
from benchmarks.micro.fuzz_target import ROUTES, Target, Wire
from router.config import configure
from router.errors import BadRequest
from router.gateway.client_connection import Connections
from router.gateway.client_limits import Limits
from router.gateway.multipart import read_form
from router.gateway.openai_request import OpenAIRequest, parse_request
from router.gateway.server import server_config
from router.processes import protocol
from router.processes.messages import pack_request, unpack_request

_STATUS = re.compile(rb"HTTP/1\.1 (\d{3}) ")


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
