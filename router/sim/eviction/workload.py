"""Workloads by name: endless streams of requests, the same ones for the same seed.

    gsp        the paper's shared prefixes: 128 groups of 32 prompts that share their first half, 512 to 8192 tokens
               in blocks of 16, in random order; then as many new groups, and so on
    zipf       512 such groups; group r is asked for in proportion to 1 / r, each prompt once
    cyclic     1,100 chains of 10 blocks in a loop, which is LRU's worst case below 11,000 blocks
    chat       conversations: numbers of turns are geometric, think times exponential, each turn repeats those before
    mix        2,000 requests of gsp (64 groups), 2,000 of chat, and so on
    anti       four loops over 1,100 new chains, which favours old blocks; then a stream of chains that are each asked
               for once more, 900 requests later, which favours young blocks; and so on
    adversary  adaptive: the next request is always the chain that lost a block last in the cache of the order `gix`, of
               the same capacity and seed 0

`gsp` is that of arXiv 2601.18999, the others stand in for kinds of traffic.
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
"""Block ids that were not used before."""
Prompts = Iterator[list[int]]
"""Requests without end, each as the ids of its blocks."""

LENGTHS_BLOCKS = (32, 64, 128, 256, 512)
CHAIN_BLOCKS = 10
CHAINS = 1100
ATTACKED_ORDER = "gix"  # By `adversary`.


def new_blocks(ids: Ids, blocks: int) -> list[int]:
    """Return the ids of `blocks` new blocks."""
    return list(islice(ids, blocks))


def gsp(rng: random.Random, ids: Ids, groups: int = 128, prompts: int = 32) -> Prompts:
    while True:
        prefixes = [new_blocks(ids, rng.choice(LENGTHS_BLOCKS) // 2) for _ in range(groups)]
        deck = [prefix for prefix in prefixes for _ in range(prompts)]
        rng.shuffle(deck)
        for prefix in deck:
            yield prefix + new_blocks(ids, len(prefix))


def zipf(rng: random.Random, ids: Ids, groups: int = 512) -> Prompts:
    prefixes = [new_blocks(ids, rng.choice(LENGTHS_BLOCKS) // 2) for _ in range(groups)]
    weights = [1 / rank for rank in range(1, groups + 1)]
    while True:
        for prefix in rng.choices(prefixes, weights, k=REPORT_EVERY):
            yield prefix + new_blocks(ids, len(prefix))


def cyclic(ids: Ids, chains: int = CHAINS) -> Prompts:
    return cycle([new_blocks(ids, CHAIN_BLOCKS) for _ in range(chains)])


def chat(rng: random.Random, ids: Ids, turns: float = 5.0, think: float = 26.0) -> Prompts:
    """`turns` is the mean number of turns of a conversation; `think` is the mean time between them, in mean times
    between the arrivals of conversations."""
    events: list[tuple[float, int, list[int]]] = [(0.0, 0, [])]  # An event without blocks begins a conversation.
    for number in count(1):
        now, _, prompt = heapq.heappop(events)
        if prompt:
            prompt = prompt + new_blocks(ids, 2 + round(rng.gammavariate(2.2, 13.5)))
        else:
            heapq.heappush(events, (now + rng.expovariate(1.0), number, []))
            prompt = new_blocks(ids, 1 + int(rng.expovariate(1 / 13)))
        yield prompt
        if rng.random() > 1 / turns:
            heapq.heappush(events, (now + rng.expovariate(1 / think), -number, prompt))


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
    """One chain more than the cache holds, asked for so that the order named `order` misses.

    So few chains leave its lots little choice: it does as badly with other seeds than the one that is attacked.
    """
    blocks = max(1, capacity // 7)
    chains = [new_blocks(ids, blocks) for _ in range(capacity // blocks + 1)]
    chain_of: dict[Block, list[int]] = {block: chain for chain in chains for block in chain}
    cache = Cache(ORDERS[order](capacity, seed=0))
    missing = dict.fromkeys(reversed(chain_of))  # What the cache does not hold; the block evicted last is at the end.
    while True:
        prompt = chain_of[next(reversed(missing))]
        cache.serve(Request(prompt))
        for block in prompt:
            missing.pop(block, None)
        missing |= dict.fromkeys(cache.evicted)
        yield prompt


@dataclass(frozen=True)
class WorkloadSpec:
    """How a workload is made."""

    make: Callable[[random.Random, int], Prompts]
    """Makes the endless stream of requests for a cache of this capacity, in blocks."""
    requests: int
    """How many of them are the workload, unless another number is asked for."""


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
    """A `Trace` that is made while it is read: the workload `label`, one of `WORKLOADS`.

    `limit` is the number of its requests; None: the usual number.
    """

    label: str
    limit: int | None = None
    seed: int = 0

    def open(self, capacity: int, report: Callable[[float], None] = ignore) -> Iterator[Request]:
        spec = WORKLOADS[self.label]
        requests = self.limit or spec.requests
        stream = spec.make(random.Random(self.seed), capacity)
        for number, prompt in enumerate(islice(stream, requests)):
            if number % REPORT_EVERY == 0:
                report(number / requests)
            yield Request(prompt)
