"""The real gateway on a real socket (with uvicorn and httptools), in front of fake engines."""

from __future__ import annotations

import asyncio
import json
import random
import socket
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import httpx
import uvicorn
from prometheus_client import CollectorRegistry
from prometheus_client.samples import Sample

from router.config import configure
from router.core.router import Router
from router.engines.discovery import Discovery
from router.gateway.app import create_app
from router.gateway.front import App
from router.gateway.server import server_config
from router.types import EngineId, EngineInfo
from tests.support.fake_engine import MODEL, FakeEngine, Script

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
BODIES: dict[str, dict[str, Any]] = {
    CHAT: {"model": MODEL, "messages": [{"role": "user", "content": "What is the capital of France?"}]},
    COMPLETIONS: {"model": MODEL, "prompt": "The capital of France is"},
}
KINDS = [(CHAT, False), (CHAT, True), (COMPLETIONS, False), (COMPLETIONS, True)]


@dataclass
class Served:
    """A running gateway, with its engines and a client of it."""

    url: str
    client: httpx.AsyncClient
    router: Router
    registry: CollectorRegistry
    engines: Sequence[FakeEngine]
    app: App

    async def post(self, route: str = CHAT, *, stream: bool = False, **fields: Any) -> httpx.Response:
        return await self.client.post(route, json={**BODIES[route], "stream": stream, **fields})

    def endings(self) -> dict[str, float]:
        """The number of requests with each ending."""
        counts: dict[str, float] = {}
        for sample in self.samples("leafcutter_requests_total"):
            counts[sample.labels["ending"]] = counts.get(sample.labels["ending"], 0) + sample.value
        return counts

    def samples(self, name: str) -> list[Sample]:
        return [s for metric in self.registry.collect() for s in metric.samples if s.name == name]

    def value(self, name: str, **labels: str) -> float:
        return sum((s.value for s in self.samples(name) if labels.items() <= s.labels.items()), 0.0)

    def in_flight(self) -> int:
        return sum(self.router._fleet.view(engine).in_flight for engine in self.router._fleet.ids())

    async def ended(self, ending: str, count: int = 1) -> None:
        """Wait until `count` requests have this ending, then check that nothing is left of them."""
        await until(lambda: self.endings().get(ending) == count)
        assert self.in_flight() == 0
        assert self.router.in_flight == 0
        await until(lambda: all(engine.running == 0 for engine in self.engines))


async def until(condition: Callable[[], bool]) -> None:
    """Wait until `condition` holds. Only the time limit of the test bounds the wait."""
    while not condition():
        await asyncio.sleep(0.002)


@asynccontextmanager
async def served(
    *scripts: Script, known: bool = True, watched: bool = False, router_type: type[Router] = Router, **options: Any
) -> AsyncIterator[Served]:
    """Run a gateway in front of one engine for each script. known: the gateway knows the model of the engines. watched:
    it checks them itself.

    options: those of the gateway, for which `least_loaded` decides unless they name another policy.
    """
    config = configure(**{"policy": "least_loaded", "seed": 1, "lbgr_cold_samples": 0, **options})
    router = router_type(config.routing, config.policies, rng=random.Random(1))
    registry = CollectorRegistry()
    async with AsyncExitStack() as stack:
        engines = [await stack.enter_async_context(FakeEngine(script).serving()) for script in scripts or (Script(),)]
        urls = {EngineId(f"engine-{i}"): engine.url for i, engine in enumerate(engines)}
        discovery = partial(Discovery, config) if watched else None
        app = create_app(config, router, urls, registry=registry, discovery=discovery)
        for engine in () if watched else urls:
            router.set_health(engine, True)
            if known:
                router.set_info(engine, EngineInfo(models=(MODEL,)))
        url = await stack.enter_async_context(listening(app, server_config(config, app, refused=app.refused)))
        client = await stack.enter_async_context(
            httpx.AsyncClient(base_url=url, timeout=60, limits=httpx.Limits(), verify=False)
        )
        yield Served(url, client, router, registry, engines, app)


@asynccontextmanager
async def listening(app: Any, config: uvicorn.Config | None = None) -> AsyncIterator[str]:
    """Serve `app` with uvicorn on a free loopback port, in the event loop of the test. It gives the URL.

    config: uvicorn's configuration of the app; None: a plain one.
    """
    config = config or uvicorn.Config(
        app, http="httptools", ws="none", lifespan="on", log_config=None, access_log=False
    )
    config.load()
    server = uvicorn.Server(config)
    server.lifespan = config.lifespan_class(config)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        await server.startup(sockets=[listener])
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            # This is uvicorn's own shutdown without its waiting.
            for each in server.servers:
                each.close()
            for connection in list(server.server_state.connections):
                connection.shutdown()
            await server.lifespan.shutdown()


def events(body: bytes) -> list[dict[str, Any] | str]:
    """The documents of a stream of server-sent events, and its end mark `[DONE]` as it stands."""
    data = [line[6:] for line in body.decode().splitlines() if line.startswith("data: ")]
    return [line if line == "[DONE]" else json.loads(line) for line in data]


def error_event(body: bytes) -> dict[str, Any]:
    """The error that a stream ends with."""
    last = events(body)[-1]
    assert isinstance(last, dict)
    error: dict[str, Any] = last["error"]
    return error


def text_of(route: str, body: bytes) -> str:
    """The text that a stream generates, put together from its events."""
    chunks = [e["choices"][0] for e in events(body) if isinstance(e, dict) and e.get("choices")]
    return "".join(c["delta"].get("content", "") if route == CHAT else c["text"] for c in chunks)


def error_of(response: httpx.Response) -> dict[str, Any]:
    """The error that an answer consists of. It must not name the address of an engine."""
    assert "127.0.0.1" not in response.text
    error: dict[str, Any] = response.json()["error"]
    return error
