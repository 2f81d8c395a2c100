"""Simple model engines for tests of the router: they prefill first come first served, decode side by side, and have an
LRU cache of blocks and a clock that jumps. Nothing here knows any policy."""

from __future__ import annotations

import heapq
import itertools
import random
from array import array
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

from router.config import configure
from router.core.experiment import Create
from router.core.router import Router
from router.types import (
    BlockKey,
    Decision,
    Ending,
    EngineId,
    EngineInfo,
    Outcome,
    ParsedRequest,
    Prompt,
    Score,
    Scores,
    Unit,
)

BLOCK = 64
Arrival = tuple[float, ParsedRequest, int]
"""The time in seconds, the request, and the tokens that its answer will have."""


def prompt_of(*blocks: int, units: int | None = None) -> Prompt:
    """A prompt of token ids whose full blocks have the keys `blocks`, with `units` tokens or just those blocks."""
    keys = tuple(BlockKey(b) for b in blocks)
    return Prompt(BlockKey(0), keys, BLOCK, BLOCK * len(blocks) if units is None else units, (), True)


def ask_for(
    *blocks: int, stream: bool = True, max_tokens: int | None = None, units: int | None = None
) -> ParsedRequest:
    return ParsedRequest("r", "/v1/completions", "m", prompt_of(*blocks, units=units), stream, max_tokens)


def router_with(
    engines: int,
    policy: str = "lbgr",
    *,
    seed: int = 0,
    create: Create | None = None,
    shadow: tuple[str, ...] = (),
    **options: object,
) -> Router:
    """A router over healthy engines e0, e1, ..., each with a cache of 1000 blocks of 16 tokens.

    lbgr decides from its first request on, unless `options` say otherwise. create: makes the policies by their names.
    """
    config = configure(**{"lbgr_cold_samples": 0, **options})
    routing = replace(config.routing, policy=policy, shadow=shadow)  # `create` may know others than the table
    router = Router(routing, config.policies, rng=random.Random(seed), create=create)
    for n in range(engines):
        router.add_engine(EngineId(f"e{n}"))
        router.set_info(EngineId(f"e{n}"), EngineInfo(models=("m",), block_size=16, capacity_blocks=1000))
        router.set_health(EngineId(f"e{n}"), True)
    return router


def decided(
    request: ParsedRequest,
    engine: EngineId,
    *,
    policy: str = "lbgr",
    predicted_s: float | None = None,
    prompt_tokens: float = 0.0,
    hit_tokens: float = 0.0,
    output_tokens: float = 1.0,
    booking: int = 1,
    dispatched_s: float = 0.0,
) -> Decision:
    """A decision that has no scores."""
    nothing, score = Scores((), array("d"), Unit.SECONDS), Score(engine, 0.0, Unit.SECONDS, predicted_s, hit_tokens)
    lengths = prompt_tokens, hit_tokens, output_tokens
    return Decision(
        request, engine, policy, "lowest_cost", predicted_s, *lengths, nothing, score, booking, dispatched_s
    )


def answered(at_s: float, *, output: int = 10, prompt: int | None = None, cached: int | None = None) -> Outcome:
    """The outcome of a request that ended well. The lengths are tokens."""
    return Outcome(Ending.OK, at_s, prompt_tokens=prompt, cached_tokens=cached, output_tokens=output)


@dataclass
class VirtualEngine:
    """An engine that prefills one request at a time, in overhead_s + uncached tokens * per_miss_s, and then decodes it
    in output tokens * (token_s + crowd_s * other running requests). `slowness` multiplies both."""

    slowness: float = 1.0
    cache_blocks: int = 400
    overhead_s: float = 0.01
    per_miss_s: float = 0.0001
    token_s: float = 0.02
    crowd_s: float = 0.0003
    free_at_s: float = 0.0
    running: int = 0
    cache: OrderedDict[BlockKey, None] = field(default_factory=OrderedDict)

    def prefill(self, prompt: Prompt, now: float) -> tuple[float, int]:
        """Take in a prompt; return the time of its first token and how many of its tokens were cached."""
        hits = 0
        for key in prompt.keys:
            if key not in self.cache:
                break
            hits += 1
        cached = min(hits * BLOCK, prompt.units - 1) // 16 * 16
        for key in reversed(prompt.keys):
            self.cache[key] = None
            self.cache.move_to_end(key)
        while len(self.cache) > self.cache_blocks:
            self.cache.popitem(last=False)
        work_s = self.slowness * (self.overhead_s + self.per_miss_s * (prompt.units - cached))
        self.free_at_s = max(self.free_at_s, now) + work_s
        return self.free_at_s, cached

    def decode_s(self, output: int) -> float:
        return self.slowness * output * (self.token_s + self.crowd_s * self.running)


def simulate(
    router: Router, engines: Sequence[VirtualEngine], arrivals: Iterable[Arrival]
) -> list[tuple[Decision, Outcome]]:
    """Send all arrivals through the router to the engines e0, e1, ...; return the answers as they are completed."""
    by_id = {EngineId(f"e{n}"): engine for n, engine in enumerate(engines)}
    answers: list[tuple[Decision, Outcome]] = []
    events: list[tuple[float, int, Callable[[float], None]]] = []
    serial = itertools.count()

    def at(time_s: float, event: Callable[[float], None]) -> None:
        heapq.heappush(events, (time_s, next(serial), event))

    def arrive(request: ParsedRequest, output: int, now: float) -> None:
        decision = router.route(request, now)
        first_s, cached = by_id[decision.engine].prefill(request.prompt, now)
        at(first_s, partial(first_token, decision, output, cached))

    def first_token(decision: Decision, output: int, cached: int, now: float) -> None:
        engine = by_id[decision.engine]
        if decision.request.stream:
            router.first_token(decision, now)
        done_s = now + engine.decode_s(output - 1)
        engine.running += 1
        at(done_s, partial(complete, decision, output, cached, now))

    def complete(decision: Decision, output: int, cached: int, first_s: float, now: float) -> None:
        by_id[decision.engine].running -= 1
        units = decision.request.prompt.units
        seen_s = first_s if decision.request.stream else None
        outcome = Outcome(Ending.OK, now, seen_s, units, cached, output)
        router.complete(decision, outcome)
        answers.append((decision, outcome))

    for at_s, request, output in arrivals:
        at(at_s, partial(arrive, request, output))
    while events:
        now, _, event = heapq.heappop(events)
        event(now)
    return answers


def mean_s(answers: Sequence[tuple[Decision, Outcome]]) -> float:
    """The mean time from dispatch to completion, seconds."""
    return sum(outcome.done_s - decision.dispatched_s for decision, outcome in answers) / len(answers)


def shared_prefixes(
    seed: int, *, rate: float, count: int, groups: int = 24, half: int = 8, stream: bool = True
) -> list[Arrival]:
    """Traffic with generated shared prefixes: `count` prompts of 2 * half blocks, whose first half is one of `groups`
    shared ones, drawn at random. Arrivals are a Poisson process of `rate` requests a second."""
    rng, now, found = random.Random(seed), 0.0, []
    for n in range(count):
        now += rng.expovariate(rate)
        group = rng.randrange(groups)
        shared = [1_000_000 + group * half + b for b in range(half)]
        own = [2_000_000 + n * half + b for b in range(half)]
        found.append((now, ask_for(*shared, *own, stream=stream), 1 + rng.randrange(40)))
    return found
