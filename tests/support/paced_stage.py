"""The real gateway on real sockets, on a clock that jumps: engines that answer over HTTP, at the times that the
simulator's model of an engine gives them.

One event at a time, and the next only when the gateway has taken notice of this one: a request has reached an engine,
its client has seen the first token, it is over. So the sockets' own time does not count, and a run can be repeated.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from heapq import heappop, heappush
from itertools import count
from typing import Any

import httpx
from aiohttp import web
from prometheus_client import CollectorRegistry

from router.config import Config, configure
from router.core.router import Router
from router.gateway.app import create_app
from router.sim.fleet.dialog import MODEL, chain_tokens
from router.sim.fleet.engine import NEVER, Engine
from router.sim.fleet.job import Job
from router.sim.fleet.scenario import Run, build_engine, describe_engine
from router.types import Decision, EngineId, ParsedRequest
from tests.support.fake_engine import FakeEngine
from tests.support.gateway_server import COMPLETIONS, listening, until


@dataclass(frozen=True)
class Asked:
    """What one client does. left_s: it goes away so long after it asked, its answer having begun or not."""

    at_s: float
    prompt: tuple[int, ...]
    reply: tuple[int, ...]
    stream: bool
    max_tokens: int
    session: str | None = None
    left_s: float | None = None


class Watched(Router):
    """Keeps its decisions. swerve: the number of the one that it makes against its policy; None: it makes none."""

    def __init__(self, config: Config, *, rng: random.Random, swerve: int | None = None) -> None:
        super().__init__(config.routing, config.policies, rng=rng)
        self.decisions: list[Decision] = []
        self._swerve = swerve

    def route(self, request: ParsedRequest, now: float, *, exclude: Sequence[EngineId] = ()) -> Decision:
        if len(self.decisions) == self._swerve:
            exclude = (self.explain(request, now).engine,)
        self.decisions.append(super().route(request, now, exclude=exclude))
        return self.decisions[-1]


@dataclass
class Answer:
    """One request in an engine: documents to be sent, None at the end."""

    engine: int
    body: dict[str, Any]
    chunks: asyncio.Queue[dict[str, Any] | None] = field(default_factory=asyncio.Queue)


class PacedEngine(FakeEngine):
    """Hands each request to `inbox`, and sends what is put into its answer, when it is."""

    def __init__(self, number: int, inbox: asyncio.Queue[Answer]) -> None:
        super().__init__()
        self._number, self._inbox = number, inbox

    async def _answer(self, request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        answer = Answer(self._number, body)
        self._inbox.put_nowait(answer)
        if not body.get("stream"):
            return web.json_response(await answer.chunks.get())
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        while (chunk := await answer.chunks.get()) is not None:
            await response.write(b"data: " + web.json_response(chunk).body + b"\n\n")
        await response.write(b"data: [DONE]\n\n")
        await response.write_eof()
        return response


@dataclass(eq=False)
class Visit:
    """One client's request on its way. begun: the client has seen something of the answer."""

    asked: Asked
    task: asyncio.Task[None]
    answer: Answer
    job: Job
    engine: Engine
    begun: asyncio.Event


class Stage:
    """A gateway over `run.fleet.engines` engines. Play once."""

    def __init__(self, run: Run, router: Watched, engines: Sequence[PacedEngine], inbox: asyncio.Queue[Answer]) -> None:
        self._run, self._router, self._inbox = run, router, inbox
        self._models = [build_engine(run, number) for number in range(len(engines))]
        for number, model in enumerate(self._models):
            engine = EngineId(f"engine-{number}")
            router.set_info(engine, describe_engine(run, number, model))
            router.set_health(engine, True)
        self.client: httpx.AsyncClient | None = None
        self.now = 0.0
        self._open: dict[str, Visit] = {}
        self._events: list[tuple[float, int, Callable[..., Any], Any]] = []
        self._serial = count()

    async def play(self, asked: Sequence[Asked]) -> None:
        for number, each in enumerate(asked):
            self._at(each.at_s, self._arrive, (str(number), each))
        while self._events:
            self.now, _, action, what = heappop(self._events)
            await action(what)
        assert not self._open

    def _at(self, time_s: float, action: Callable[..., Any], what: Any) -> None:
        heappush(self._events, (time_s, next(self._serial), action, what))

    def _watch(self, model: Engine) -> None:
        if model.next_s < NEVER:
            self._at(model.next_s, self._wake, model)

    async def _arrive(self, what: tuple[str, Asked]) -> None:
        name, asked = what
        begun = asyncio.Event()
        task = asyncio.create_task(self._ask(name, asked, begun))
        answer = await self._inbox.get()
        block = self._run.fleet.block_tokens
        # Nobody knows how long an answer would have become that its client did not wait for: up to its bound.
        tokens = len(asked.reply) if asked.left_s is None else asked.max_tokens
        job = Job(chain_tokens((*asked.prompt, *asked.reply), block).keys, len(asked.prompt), tokens, name)
        model = self._models[answer.engine]
        self._open[name] = Visit(asked, task, answer, job, model, begun)
        if asked.left_s is not None:
            self._at(self.now + asked.left_s, self._leave, name)
        model.submit(job, self.now)
        self._watch(model)

    async def _ask(self, name: str, asked: Asked, begun: asyncio.Event) -> None:
        assert self.client is not None
        body = {"model": MODEL, "prompt": asked.prompt, "max_tokens": asked.max_tokens, "stream": asked.stream}
        headers = {"x-request-id": name} | ({"x-session-id": asked.session} if asked.session else {})
        async with self.client.stream("POST", COMPLETIONS, json=body, headers=headers) as response:
            assert response.status_code == 200
            async for line in response.aiter_lines():
                if line.startswith("data:"):
                    begun.set()

    async def _wake(self, model: Engine) -> None:
        if model.next_s != self.now:
            return
        first, done = model.advance()
        self._watch(model)
        for job in first:
            visit = self._open.get(str(job.tag))
            if visit is not None and visit.asked.stream:
                visit.answer.chunks.put_nowait(_chunk(visit.asked.reply[:1]))
                await visit.begun.wait()
        for job in done:
            await self._finish(self._open.pop(str(job.tag)))

    async def _finish(self, visit: Visit) -> None:
        asked, job = visit.asked, visit.job
        rest = asked.reply[1:] if asked.stream else asked.reply
        usage = {
            "prompt_tokens": job.prompt_tokens,
            "completion_tokens": job.output_tokens,
            "prompt_tokens_details": {"cached_tokens": job.cached_tokens},
        }
        visit.answer.chunks.put_nowait(_chunk(rest) | {"usage": usage})
        visit.answer.chunks.put_nowait(None)
        await visit.task
        await self._over()

    async def _leave(self, name: str) -> None:
        visit = self._open.pop(name)
        visit.engine.abort(visit.job, self.now)
        self._watch(visit.engine)
        visit.task.cancel()
        await self._over()

    async def _over(self) -> None:
        await until(lambda: self._router.in_flight == len(self._open))


def _chunk(tokens: Sequence[int]) -> dict[str, Any]:
    return {"choices": [{"index": 0, "text": "word " * len(tokens), "token_ids": list(tokens)}]}


@asynccontextmanager
async def staged(run: Run, *, swerve: int | None = None, **options: Any) -> AsyncIterator[tuple[Stage, Watched]]:
    """The gateway of `run`'s policy and seed; options: of it, beside those of the run."""
    config = configure(policy=run.policy, prefix_block_tokens=run.fleet.block_tokens, **run.options, **options)
    router = Watched(config, rng=random.Random(run.seed), swerve=swerve)
    inbox: asyncio.Queue[Answer] = asyncio.Queue()
    async with AsyncExitStack() as stack:
        engines = [PacedEngine(number, inbox) for number in range(run.fleet.engines)]
        for engine in engines:
            await stack.enter_async_context(engine.serving())
        urls = {EngineId(f"engine-{number}"): engine.url for number, engine in enumerate(engines)}
        app = create_app(config, router, urls, registry=CollectorRegistry(), clock=lambda: stage.now)
        stage = Stage(run, router, engines, inbox)
        url = await stack.enter_async_context(listening(app))
        stage.client = await stack.enter_async_context(
            httpx.AsyncClient(base_url=url, timeout=60, limits=httpx.Limits(), verify=False)
        )
        yield stage, router
