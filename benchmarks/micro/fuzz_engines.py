"""The parts of `fuzz` that see what engines send."""

from __future__ import annotations

import asyncio
import itertools
import json
import random
from collections.abc import Sequence

import httpx

from benchmarks.micro import fuzz_seeds
from benchmarks.micro.fuzz_mutator import pieces
from benchmarks.micro.fuzz_target import ENGINES, ROUTES, Target, Wire, make_router
from router.engines import probe
from router.errors import EngineLost
from router.gateway import apis
from router.gateway.engine_connection import EngineConnection
from router.gateway.lenient_json import read_object
from router.gateway.observe import ObservedAnswer
from router.gateway.openai_request import parse_request
from router.gateway.stream_observer import StreamObserver
from router.processes.messages import pack_outcome
from router.processes.protocol import frame
from router.types import Ending, Outcome

ASKED = {
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
    keys = ASKED[route].reply_keys(fields, observed.message.token_ids)
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
        router = make_router()
        router.set_info(ENGINES[0], info)
        json.dumps(router.status().engines[ENGINES[0]].info.models)
        return True
