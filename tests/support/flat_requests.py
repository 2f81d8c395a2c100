"""Accesses to single blocks, one after the other: what the published algorithms are defined on.

There an order must choose exactly the victims that the algorithm's definition chooses. Each test writes that down as a
class with `access(key)`, whose `evict` returns the victim.
"""

import random
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from engine_patches.orders.structures.leaf_order import LeafOrder
from engine_patches.orders.structures.ring import Ring, RingNode
from tests.support.toy_engine import D, Driven, Prefix, ToyEngine


def access(engine: ToyEngine[Any], prompt: Prefix) -> list[Prefix]:
    """Run one request from start to end. Return the keys that were evicted for it."""
    seen = len(engine.victims)
    assert engine.admit(prompt)
    engine.finish(engine.running[-1])
    return [key for _, key in engine.victims[seen:] if key is not None]


def draw_accesses(seed: int, count: int, num_keys: int) -> Iterator[Prefix]:
    """Popular keys, a loop somewhat longer than the cache, and keys that come once."""
    chance = random.Random(seed)
    for number in range(count):
        kind = chance.random()
        if kind < 0.5:
            yield (int(chance.paretovariate(0.7)) % num_keys,)
        elif kind < 0.8:
            yield (num_keys + number % num_keys,)
        else:
            yield (1000 + number,)


def victims_of(order: Driven, num_blocks: int, accesses: Iterable[Prefix]) -> list[list[Prefix]]:
    """The keys that each access evicts."""
    engine = ToyEngine(order, num_blocks, seed=0)
    return [access(engine, key) for key in accesses]


class Textbook(ABC):
    """A published algorithm, written as its paper does, for a cache of `size` keys."""

    def __init__(self, size: int) -> None:
        self.size = size

    @abstractmethod
    def contents(self) -> Sequence[Prefix]:
        """The cached keys."""

    @abstractmethod
    def hit(self, key: Prefix) -> None:
        """A cached key is accessed."""

    @abstractmethod
    def insert(self, key: Prefix) -> None:
        """A key that is not cached is accessed; there is room for it."""

    @abstractmethod
    def evict(self) -> Prefix:
        """Drop the victim and return it."""

    def access(self, key: Prefix) -> list[Prefix]:
        """Access the key. Return the keys that were evicted for it."""
        if key in self.contents():
            self.hit(key)
            return []
        victims = [self.evict()] if len(self.contents()) == self.size else []
        self.insert(key)
        return victims


def standing(*rings: Ring) -> list[list[RingNode]]:
    """The keys in each ring. Fails if one is in two places."""
    inside = [list(ring.walk()) for ring in rings]
    everyone = [id(node) for nodes in inside for node in nodes]
    assert len(set(everyone)) == len(everyone)
    return inside


def free_leaves(order: LeafOrder[Any]) -> set[int]:
    """The `id` of each leaf by the definition: a free key without a free child."""
    nodes = {id(node): node for node in order._node_of if node is not None and node.free}.values()
    parents = {id(node.parent) for node in nodes}
    return {id(node) for node in nodes if id(node) not in parents}


def drive(order: D, num_blocks: int, seed: int, *, windowed: bool, steps: int = 1500) -> Iterator[ToyEngine[D]]:
    """Random traffic with everything that happens to a pool; yields after every event."""
    engine = ToyEngine(order, num_blocks, seed, windowed=windowed)
    for _ in range(steps):
        engine.step(rough=True)
        yield engine
