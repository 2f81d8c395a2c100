"""A router process and its edges, all in the event loop of the test, over a real Unix socket."""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Mapping
from contextlib import AsyncExitStack
from typing import Any, TypeVar

from router.config import configure
from router.core.router import Router
from router.gateway.openai_request import parse_request
from router.gateway.trace_writer import TraceWriter
from router.processes.decision_server import DecisionServer
from router.processes.remote_decider import RemoteDecider
from router.types import Ending, EngineId, EngineInfo, Outcome, ParsedRequest
from tests.support.fake_engine import MODEL

E0, E1 = ENGINES = EngineId("engine-0"), EngineId("engine-1")
ADDRESSES = {E0: "http://127.0.0.1:1", E1: "http://127.0.0.1:2"}
NUMBERS = itertools.count()


def request(model: str = MODEL, text: str = "hi " * 200) -> ParsedRequest:
    body = b'{"model": "%s", "prompt": "%s", "stream": true}' % (model.encode(), text.encode())
    name = f"r{next(NUMBERS)}"
    return parse_request(body, route="/v1/completions", headers={}, request_id=name, block_tokens=64).parsed


def done(ending: Ending = Ending.OK, **fields: Any) -> Outcome:
    return Outcome(ending, time.monotonic(), **fields)


def make_router(**options: Any) -> Router:
    config = configure(**{"policy": "least_loaded", **options})
    return with_engines(Router(config.routing, config.policies, rng=random.Random(1)))


R = TypeVar("R", bound=Router)


def with_engines(router: R) -> R:
    """The router with both engines, which are well."""
    for engine in ENGINES:
        router.add_engine(engine)
        router.set_info(engine, EngineInfo(models=(MODEL,)))
        router.set_health(engine, True)
    return router


class Place:
    """A router process and edges, each of which can be stopped and started."""

    def __init__(self, stack: AsyncExitStack, path: str) -> None:
        self._stack, self.path = stack, path
        self.router = make_router()
        self._serving = AsyncExitStack()

    async def serve(
        self,
        router: Router | None = None,
        recording: TraceWriter | None = None,
        addresses: Mapping[EngineId, str] = ADDRESSES,
    ) -> DecisionServer:
        self.router = router or self.router
        server = DecisionServer(self.router, addresses, time.monotonic, recording)
        await self._serving.enter_async_context(server.running(self.path))
        return server

    async def stop(self) -> None:
        await self._serving.aclose()

    async def edge(self, name: str = "edge-0") -> RemoteDecider:
        decider = RemoteDecider(self.path, name, time.monotonic)
        await self._stack.enter_async_context(decider.running())
        await decider.known.wait()
        return decider

    def load(self) -> list[int]:
        return [self.router._fleet.view(engine).in_flight for engine in ENGINES]
