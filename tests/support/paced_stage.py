"""The real gateway on real sockets, with a clock that jumps: the engines answer over HTTP, at the times that the
simulator's model of an engine gives.

Events are played one at a time, and the next one begins only when the gateway has noticed the last: a request has
reached an engine, its client has seen the first token, or the request is over. So the time that sockets take does not
count, and a run can be repeated exactly.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
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

Event = Callable[[], Awaitable[None]]


@dataclass(frozen=True)
class ClientPlan:
    """What one client does."""

    at_s: float
    prompt: tuple[int, ...]
    reply: tuple[int, ...]
    stream: bool
    max_tokens: int
    session: str | None = None
    leaves_after_s: float | None = None
    """The client goes away this long after it sent its request, whether or not the answer has begun; None: it stays."""


class RecordingRouter(Router):
    """A router that keeps its decisions.

    deviate_at: the index of the one decision in which it avoids the engine that its policy would choose; None: it
    always follows its policy.
    """

    def __init__(self, config: Config, *, rng: random.Random, deviate_at: int | None = None) -> None:
        super().__init__(config.routing, config.policies, rng=rng)
        self.decisions: list[Decision] = []
        self._deviate_at = deviate_at

    def route(
        self, request: ParsedRequest, now: float, *, exclude: Collection[EngineId] = (), held_s: float = 0.0
    ) -> Decision:
        if len(self.decisions) == self._deviate_at:
            exclude = (self.explain(request, now).engine,)
        self.decisions.append(super().route(request, now, exclude=exclude, held_s=held_s))
        return self.decisions[-1]


@dataclass
class Answer:
    """The answer of an engine to one request: the queue of the documents that it sends, with None at the end."""

    engine: int
    body: dict[str, Any]
    chunks: asyncio.Queue[dict[str, Any] | None] = field(default_factory=asyncio.Queue)


class PacedEngine(FakeEngine):
    """An engine that puts an `Answer` to each request into `inbox`, and sends the answer's documents as they come."""

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
            await response.write(b"data: " + json.dumps(chunk).encode() + b"\n\n")
        await response.write(b"data: [DONE]\n\n")
        await response.write_eof()
        return response


@dataclass(eq=False)
class Visit:
    """One client's request on its way. begun: set when the client has seen the first event of the answer."""

    plan: ClientPlan
    task: asyncio.Task[None]
    answer: Answer
    job: Job
    engine: Engine
    begun: asyncio.Event


class Stage:
    """A gateway in front of the engines of `run`, on which traffic can be played once."""

    def __init__(
        self, run: Run, router: RecordingRouter, engines: Sequence[PacedEngine], inbox: asyncio.Queue[Answer]
    ) -> None:
        self._run, self._router, self._inbox = run, router, inbox
        self._models = [build_engine(run, number) for number in range(len(engines))]
        for number, model in enumerate(self._models):
            engine = EngineId(f"engine-{number}")
            router.set_info(engine, describe_engine(run, number, model))
            router.set_health(engine, True)
        self.client: httpx.AsyncClient | None = None
        self.now = 0.0
        self._open: dict[str, Visit] = {}
        self._events: list[tuple[float, int, Event]] = []
        self._serial = count()

    async def play(self, plans: Sequence[ClientPlan]) -> None:
        """Play all clients, from the first event to the last."""
        for number, plan in enumerate(plans):
            self._at(plan.at_s, partial(self._arrive, str(number), plan))
        while self._events:
            self.now, _, event = heappop(self._events)
            await event()
        assert not self._open

    def _at(self, time_s: float, event: Event) -> None:
        heappush(self._events, (time_s, next(self._serial), event))

    def _watch(self, model: Engine) -> None:
        if model.next_s < NEVER:
            self._at(model.next_s, partial(self._wake, model))

    async def _arrive(self, name: str, plan: ClientPlan) -> None:
        begun = asyncio.Event()
        task = asyncio.create_task(self._ask(name, plan, begun))
        answer = await self._inbox.get()
        block = self._run.fleet.block_tokens
        # How long an abandoned answer would have become is unknown, so the model generates up to the client's bound.
        tokens = len(plan.reply) if plan.leaves_after_s is None else plan.max_tokens
        job = Job(chain_tokens((*plan.prompt, *plan.reply), block).keys, len(plan.prompt), tokens, name)
        model = self._models[answer.engine]
        self._open[name] = Visit(plan, task, answer, job, model, begun)
        if plan.leaves_after_s is not None:
            self._at(self.now + plan.leaves_after_s, partial(self._leave, name))
        model.submit(job, self.now)
        self._watch(model)

    async def _ask(self, name: str, plan: ClientPlan, begun: asyncio.Event) -> None:
        assert self.client is not None
        body = {"model": MODEL, "prompt": plan.prompt, "max_tokens": plan.max_tokens, "stream": plan.stream}
        headers = {"x-request-id": name} | ({"x-session-id": plan.session} if plan.session else {})
        async with self.client.stream("POST", COMPLETIONS, json=body, headers=headers) as response:
            assert response.status_code == 200
            async for line in response.aiter_lines():
                if line.startswith("data:"):
                    begun.set()

    async def _wake(self, model: Engine) -> None:
        if model.next_s != self.now:  # the engine's plan has changed since this event was made
            return
        first, done = model.advance()
        self._watch(model)
        for job in first:
            visit = self._open.get(str(job.tag))
            if visit is not None and visit.plan.stream:
                visit.answer.chunks.put_nowait(_chunk(visit.plan.reply[:1]))
                await visit.begun.wait()
        for job in done:
            await self._finish(self._open.pop(str(job.tag)))

    async def _finish(self, visit: Visit) -> None:
        plan, job = visit.plan, visit.job
        rest = plan.reply[1:] if plan.stream else plan.reply
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
async def staged(
    run: Run, *, deviate_at: int | None = None, **options: object
) -> AsyncIterator[tuple[Stage, RecordingRouter]]:
    """A stage with the policy and the seed of `run`, and its router.

    options: the gateway's options in addition to those of the run. deviate_at: as for `RecordingRouter`.
    """
    config = configure(policy=run.policy, prefix_block_tokens=run.fleet.block_tokens, **run.options, **options)
    router = RecordingRouter(config, rng=random.Random(run.seed), deviate_at=deviate_at)
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
