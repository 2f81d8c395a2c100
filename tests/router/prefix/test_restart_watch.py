"""A restart that no health check saw is noticed within a few answers, and evictions under pressure are none.

The engine of these tests is a pool of blocks under one of the real eviction orders. The index sees what a gateway sees.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest

from engine_patches.orders import ORDERS
from router.prefix.index import PrefixIndex
from router.prefix.observation import CacheObservation
from router.sim.fleet.pool import BlockPool
from router.types import BlockKey, EngineId, PrefixExpectation

E, BLOCK, SIZE = EngineId("e"), 16, 1000
ALL = ("lru", "rlt", "gix", "rlt_gix")

Path = tuple[BlockKey, ...]


def path(name: int, blocks: int = 20, shared: int = 0) -> Path:
    """A prompt whose first `shared` blocks all prompts share."""
    return tuple(BlockKey(n if n < shared else (name + 1) * 100_000 + n) for n in range(blocks))


class Engine:
    """One engine with its cache, and the index that believes something of it."""

    def __init__(self, order: str, size: int = SIZE, told: bool = True) -> None:
        self.name, self.size = order, size
        self.index = PrefixIndex(1 << 20)
        self.index.add(E, float(size * BLOCK), guessed=not told, order=order)
        self.restart()

    def restart(self) -> None:
        self.pool = BlockPool(ORDERS[self.name](self.size, 1))

    def send(self, prompt: Path) -> tuple[Path, PrefixExpectation, list[int], int]:
        match = self.index.match(prompt)
        expectation = self.index.book(E, prompt, match, float(BLOCK))
        hits = self.pool.find(prompt, len(prompt) - 1)
        self.pool.use(hits)
        blocks = [*hits, *self.pool.allocate(len(prompt) - len(hits))]
        self.pool.cache(blocks, list(prompt), len(hits), len(prompt))
        return prompt, expectation, blocks, len(hits)

    def end(self, sent: tuple[Path, PrefixExpectation, list[int], int], ratio: float = 1.0) -> int:
        prompt, expectation, blocks, cached = sent
        self.pool.release(blocks[::-1])
        tokens, expected = float(len(prompt) * BLOCK), float(expectation.blocks * BLOCK)
        observation = CacheObservation(
            prompt, (), expectation, float(BLOCK), ratio, float(BLOCK), tokens, expected, cached * BLOCK
        )
        self.index.settle(E, observation)
        return cached

    def ask(self, prompt: Path, ratio: float = 1.0) -> int:
        return self.end(self.send(prompt), ratio)

    def believed(self, prompts: Sequence[Path]) -> int:
        """How many of the prompts the index expects mostly cached."""
        return sum(self.index.match(each).blocks.get(E, 0.0) > len(each) / 2 for each in prompts)


@pytest.mark.parametrize("shared", [0, 10])
@pytest.mark.parametrize("order", ALL)
def test_after_a_restart_the_other_prefixes_are_soon_believed_in_no_longer(order: str, shared: int) -> None:
    engine, prompts = Engine(order), [path(name, shared=shared) for name in range(10)]
    for _ in range(4):
        for prompt in prompts:
            engine.ask(prompt)
    assert engine.believed(prompts) == 10
    engine.restart()
    for prompt in prompts[:3]:
        engine.ask(prompt)
    assert engine.believed(prompts[3:]) == 0
    assert engine.believed(prompts[:3]) == 3  # these are cached again


@pytest.mark.parametrize("order", ALL)
def test_a_prompt_that_is_repeated_after_a_restart_does_not_hide_it(order: str) -> None:
    engine, prompts = Engine(order), [path(name) for name in range(10)]
    for _ in range(4):
        for prompt in prompts:
            engine.ask(prompt)
    engine.restart()
    for prompt in prompts[:3]:
        for _ in range(5):
            engine.ask(prompt)
    assert engine.believed(prompts[3:]) == 0


@pytest.mark.parametrize("order", ALL)
def test_requests_side_by_side_after_a_restart_do_not_hide_it(order: str) -> None:
    engine, prompts = Engine(order), [path(name, shared=10) for name in range(10)]
    for _ in range(4):
        for prompt in prompts:
            engine.ask(prompt)
    engine.restart()
    for sent in [engine.send(prompt) for prompt in prompts[:3]]:
        engine.end(sent)
    for prompt in prompts[3:6]:
        engine.ask(prompt)
    assert engine.believed(prompts[6:]) == 0


@pytest.mark.parametrize("order", ALL)
def test_an_old_prefix_that_is_found_refutes_a_restart(order: str) -> None:
    engine, prompts = Engine(order), [path(name) for name in range(10)]
    for _ in range(4):
        for prompt in prompts:
            engine.ask(prompt)
    for _ in range(5):  # an answer that says nothing was cached, as one with prompt_logprobs does, between others
        engine.end((*engine.send(prompts[0])[:3], 0))
        assert engine.ask(prompts[5]) > 0
    assert engine.believed(prompts) == 10


@pytest.mark.parametrize("order", ALL)
def test_answers_that_were_asked_for_before_a_restart_was_noticed_raise_no_second_alarm(order: str) -> None:
    engine, prompts = Engine(order), [path(name) for name in range(10)]
    for _ in range(4):
        for prompt in prompts:
            engine.ask(prompt)
    engine.restart()
    sent = [engine.send(prompt) for prompt in prompts]
    for each in sent:
        engine.end(each)
    assert engine.believed(prompts) == 10  # all are cached again


@pytest.mark.parametrize("load", [0.8, 1.5, 3.0])
@pytest.mark.parametrize("order", ALL)
def test_evictions_under_pressure_are_no_restart(order: str, load: float) -> None:
    """load: the prefixes that come again and again, in sizes of the cache; besides, one request in two is new."""
    engine, rng = Engine(order), random.Random(7)
    prompts = [path(name, shared=5) for name in range(int(load * SIZE / 20))]
    alarms, running = 0, []
    for number in range(4000):
        new = rng.random() < 0.5
        prompt = path(10_000 + number, shared=5) if new else prompts[int(rng.paretovariate(0.7)) % len(prompts)]
        running.append(engine.send(prompt))
        if len(running) > 6:
            before = engine.index.blocks(E)
            engine.end(running.pop(rng.randrange(len(running))), ratio=rng.uniform(0.9, 1.1))
            alarms += before - engine.index.blocks(E) > SIZE / 4
    assert alarms <= 1
