"""Engines of arithmetic for tests of the router: first come first served prefill, side-by-side decoding, an LRU cache
of blocks, a clock that jumps. Nothing here knows a policy."""

from __future__ import annotations

import heapq
import random
from array import array
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

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
Arrival = tuple[float, ParsedRequest, int]  # time, request, output tokens


def prompt_of(*blocks: int, units: int | None = None) -> Prompt:
    """A prompt of token ids whose full blocks have these keys."""
    keys = tuple(BlockKey(b) for b in blocks)
    return Prompt(BlockKey(0), keys, BLOCK, BLOCK * len(blocks) if units is None else units, (), True)


def ask_for(
    *blocks: int, stream: bool = True, max_tokens: int | None = None, units: int | None = None
) -> ParsedRequest:
    return ParsedRequest("r", "/v1/completions", "m", prompt_of(*blocks, units=units), stream, max_tokens)


def router_with(
    engines: int, policy: str = "lbgr", *, seed: int = 0, create: Create | None = None, **options: object
) -> Router:
    """A router with healthy engines e0, e1, ..., each of 1000 blocks of 16 tokens. lbgr decides from its first request
    on, if the options do not say otherwise."""
    shadow = options.pop("shadow", ())
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
    """A decision without the scores that led to it."""
    nothing, score = Scores((), array("d"), Unit.SECONDS), Score(engine, 0.0, Unit.SECONDS, predicted_s, hit_tokens)
    lengths = prompt_tokens, hit_tokens, output_tokens
    return Decision(
        request, engine, policy, "lowest_cost", predicted_s, *lengths, nothing, score, booking, dispatched_s
    )


def answered(at_s: float, *, output: int = 10, prompt: int | None = None, cached: int | None = None) -> Outcome:
    return Outcome(Ending.OK, at_s, prompt_tokens=prompt, cached_tokens=cached, output_tokens=output)


@dataclass
class VirtualEngine:
    """prefill = overhead + miss * per_miss, one at a time; then output * (token + crowd * others)."""

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
        """(time of the first token, cached tokens)."""
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
    """All arrivals through the router and the engines e0, e1, ...; answers in the order of their completion."""
    by_id = {EngineId(f"e{n}"): engine for n, engine in enumerate(engines)}
    answers: list[tuple[Decision, Outcome]] = []
    events: list[tuple[float, int, str, tuple]] = []
    for n, (at_s, request, output) in enumerate(arrivals):
        heapq.heappush(events, (at_s, n, "arrive", (request, output)))
    serial = len(events)
    while events:
        now, _, kind, what = heapq.heappop(events)
        serial += 1
        if kind == "arrive":
            request, output = what
            decision = router.route(request, now)
            first_s, cached = by_id[decision.engine].prefill(request.prompt, now)
            heapq.heappush(events, (first_s, serial, "first", (decision, output, cached)))
        elif kind == "first":
            decision, output, cached = what
            engine = by_id[decision.engine]
            if decision.request.stream:
                router.first_token(decision, now)
            done_s = now + engine.decode_s(output - 1)
            engine.running += 1
            heapq.heappush(events, (done_s, serial, "done", (decision, output, cached, now)))
        else:
            decision, output, cached, first_s = what
            by_id[decision.engine].running -= 1
            units = decision.request.prompt.units
            seen_s = first_s if decision.request.stream else None
            outcome = Outcome(Ending.OK, now, seen_s, units, cached, output)
            router.complete(decision, outcome)
            answers.append((decision, outcome))
    return answers


def mean_s(answers: Sequence[tuple[Decision, Outcome]]) -> float:
    return sum(outcome.done_s - decision.dispatched_s for decision, outcome in answers) / len(answers)


def shared_prefixes(
    seed: int, *, rate: float, count: int, groups: int = 24, half: int = 8, stream: bool = True
) -> list[Arrival]:
    """GSP: prompts of 2 * half blocks, the first half one of `groups` shared ones, in random order, arrivals Poisson
    at `rate` a second."""
    rng, now, found = random.Random(seed), 0.0, []
    for n in range(count):
        now += rng.expovariate(rate)
        group = rng.randrange(groups)
        shared = [1_000_000 + group * half + b for b in range(half)]
        own = [2_000_000 + n * half + b for b in range(half)]
        found.append((now, ask_for(*shared, *own, stream=stream), 1 + rng.randrange(40)))
    return found
