"""Workloads by name: endless streams of requests, the same ones for the same seed.

    gsp        the paper's shared prefixes: 128 groups of 32 prompts that share their first half, 512 to 8192 tokens
               in blocks of 16, in random order; then groups that are new
    zipf       512 such groups, group r asked for in proportion to 1 / r, each prompt once
    cyclic     1,100 chains of 10 blocks in a loop: LRU's worst case below 11,000 blocks
    chat       conversations: geometric numbers of turns, exponential think times, each turn repeats those before
    mix        2,000 requests of gsp (64 groups), 2,000 of chat, and so on
    anti       four loops over 1,100 new chains (keep the old ones), then a stream of chains that are asked for once
               more, 900 requests later (keep the young ones), and so on
    adversary  adaptive: always the chain of which the learned order, of the same capacity and seed 0, evicted last

`gsp` is the shape of arXiv 2601.18999, the others are stand-ins for kinds of traffic.
"""

from __future__ import annotations

import heapq
import random
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import count, cycle, islice
from types import MappingProxyType

from engine_patches.orders import ORDERS
from router.sim.eviction.replay import Cache
from router.sim.trace import REPORT_EVERY, Block, Request, ignore

Ids = Iterator[int]
Prompts = Iterator[list[int]]

LENGTHS_BLOCKS = (32, 64, 128, 256, 512)
CHAIN_BLOCKS = 10
CHAINS = 1100
ATTACKED_ORDER = "gix"


def new_blocks(ids: Ids, blocks: int) -> list[int]:
    """So many new ids."""
    return list(islice(ids, blocks))


def gsp(rng: random.Random, ids: Ids, groups: int = 128, prompts: int = 32) -> Prompts:
    while True:
        heads = [new_blocks(ids, rng.choice(LENGTHS_BLOCKS) // 2) for _ in range(groups)]
        asked = [head for head in heads for _ in range(prompts)]
        rng.shuffle(asked)
        for head in asked:
            yield head + new_blocks(ids, len(head))


def zipf(rng: random.Random, ids: Ids, groups: int = 512) -> Prompts:
    heads = [new_blocks(ids, rng.choice(LENGTHS_BLOCKS) // 2) for _ in range(groups)]
    weights = [1 / rank for rank in range(1, groups + 1)]
    while True:
        for head in rng.choices(heads, weights, k=REPORT_EVERY):
            yield head + new_blocks(ids, len(head))


def cyclic(ids: Ids, chains: int = CHAINS) -> Prompts:
    return cycle([new_blocks(ids, CHAIN_BLOCKS) for _ in range(chains)])


def chat(rng: random.Random, ids: Ids, turns: float = 5.0, think: float = 26.0) -> Prompts:
    """`turns`: mean of a conversation; `think`: mean time between turns, in mean times between conversations."""
    events: list[tuple[float, int, list[int]]] = [(0.0, 0, [])]  # a conversation without blocks is one to begin
    for number in count(1):
        now, _, path = heapq.heappop(events)
        if path:
            path = path + new_blocks(ids, 2 + round(rng.gammavariate(2.2, 13.5)))
        else:
            heapq.heappush(events, (now + rng.expovariate(1.0), number, []))
            path = new_blocks(ids, 1 + int(rng.expovariate(1 / 13)))
        yield path
        if rng.random() > 1 / turns:
            heapq.heappush(events, (now + rng.expovariate(1 / think), -number, path))


def mix(rng: random.Random, ids: Ids, requests: int = 2000) -> Prompts:
    while True:
        yield from islice(gsp(rng, ids, groups=64), requests)
        yield from islice(chat(rng, ids), requests)


def anti(ids: Ids, loops: int = 4, apart: int = 450, pairs: int = 6150) -> Prompts:
    while True:
        yield from islice(cyclic(ids), loops * CHAINS)
        recent = deque(new_blocks(ids, CHAIN_BLOCKS) for _ in range(apart))
        yield from list(recent)
        for _ in range(pairs):
            yield recent.popleft()
            recent.append(new_blocks(ids, CHAIN_BLOCKS))
            yield recent[-1]


def adversary(ids: Ids, capacity: int, order: str = ATTACKED_ORDER) -> Prompts:
    """One chain more than the cache holds; `order`: the one that is made to miss.

    So few chains leave its lots little choice: with other seeds it does as badly.
    """
    blocks = max(1, capacity // 7)
    chains = [new_blocks(ids, blocks) for _ in range(capacity // blocks + 1)]
    chain_of: dict[Block, list[int]] = {block: chain for chain in chains for block in chain}
    cache = Cache(ORDERS[order](capacity, seed=0))
    missing = dict.fromkeys(reversed(chain_of))  # what the cache does not hold, the last one evicted at the end
    while True:
        path = chain_of[next(reversed(missing))]
        cache.serve(Request(path))
        for block in path:
            missing.pop(block, None)
        missing |= dict.fromkeys(cache.evicted)
        yield path


@dataclass(frozen=True)
class WorkloadSpec:
    """`make(rng, capacity)`: an endless stream. `requests`: how many of them make the workload, unless said."""

    make: Callable[[random.Random, int], Prompts]
    requests: int


WORKLOADS: Mapping[str, WorkloadSpec] = MappingProxyType(
    {
        "gsp": WorkloadSpec(lambda rng, _capacity: gsp(rng, count()), 4096),
        "zipf": WorkloadSpec(lambda rng, _capacity: zipf(rng, count()), 6000),
        "cyclic": WorkloadSpec(lambda _rng, _capacity: cyclic(count()), 8800),
        "chat": WorkloadSpec(lambda rng, _capacity: chat(rng, count()), 12000),
        "mix": WorkloadSpec(lambda rng, _capacity: mix(rng, count()), 12000),
        "anti": WorkloadSpec(lambda _rng, _capacity: anti(count()), 68600),
        "adversary": WorkloadSpec(lambda _rng, capacity: adversary(count(), capacity), 2000),
    }
)


@dataclass(frozen=True)
class Workload:
    """A `Trace` made as it is read: `label` is one of `WORKLOADS`. `limit`: its requests, if not the usual number."""

    label: str
    limit: int | None = None
    seed: int = 0

    def open(self, capacity: int, report: Callable[[float], None] = ignore) -> Iterator[Request]:
        shape = WORKLOADS[self.label]
        requests = self.limit or shape.requests
        paths = shape.make(random.Random(self.seed), capacity)
        for number, path in enumerate(islice(paths, requests)):
            if number % REPORT_EVERY == 0:
                report(number / requests)
            yield Request(path)
