"""Accesses to single blocks, one after the other: what the published algorithms are defined on.

There an order must choose exactly the victims that the algorithm's definition chooses. Each test writes that down as a
class with `access(key)`, whose `evict` returns the victim.
"""

import random

from tests.support.toy_engine import ToyEngine


def access(engine, prompt):
    """A request that comes, and ends, before the next one. The keys it costs."""
    seen = len(engine.victims)
    assert engine.admit(prompt)
    engine.finish(engine.running[-1])
    return [key for _, key in engine.victims[seen:] if key is not None]


def draw_accesses(seed, count, num_keys):
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


def victims_of(order, num_blocks, accesses):
    engine = ToyEngine(order, num_blocks, seed=0)
    return [access(engine, key) for key in accesses]


class Textbook:
    """`contents()`: the cached keys; `evict()`: drops one and returns it; `hit(key)`; `insert(key)`."""

    def __init__(self, size):
        self.size = size

    def access(self, key):
        if key in self.contents():
            self.hit(key)
            return []
        victims = [self.evict()] if len(self.contents()) == self.size else []
        self.insert(key)
        return victims


def standing(*rings):
    """The keys that stand in each ring; none stands twice."""
    inside = [list(ring.walk()) for ring in rings]
    everyone = [id(node) for nodes in inside for node in nodes]
    assert len(set(everyone)) == len(everyone)
    return inside


def free_leaves(order):
    """By the definition: free keys without a free child."""
    nodes = {id(node): node for node in order._node_of if node is not None and node.free}.values()
    parents = {id(node.parent) for node in nodes}
    return {id(node) for node in nodes if id(node) not in parents}


def drive(order, num_blocks, seed, *, windowed, steps=1500):
    """Random traffic with everything that happens to a pool; yields after every event."""
    engine = ToyEngine(order, num_blocks, seed, windowed=windowed)
    for _ in range(steps):
        engine.step(rough=True)
        yield engine
