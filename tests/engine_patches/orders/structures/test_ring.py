"""The rings, and what a use of the orders that stand on them costs."""

import random

import pytest

from engine_patches.orders import ORDERS
from engine_patches.orders.structures.ring import Ring, RingNode
from tests.support.flat_requests import access
from tests.support.toy_engine import ToyEngine, count_lines


def test_oldest_first() -> None:
    ring, nodes = Ring(), [RingNode() for _ in range(4)]
    assert not ring
    for node in nodes[:3]:
        ring.add(node)
    ring.add(nodes[3], nodes[1])
    assert ring
    assert list(ring.walk()) == [nodes[0], nodes[3], nodes[1], nodes[2]]
    assert list(ring.walk(nodes[1])) == [nodes[2]]
    nodes[3].unlink()
    assert nodes[3].left is None
    assert list(ring.walk()) == nodes[:3]
    for node in nodes[:3]:
        node.unlink()
    assert not ring


@pytest.mark.parametrize("name", ["arc", "lfu", "s3fifo", "sieve"])
def test_an_access_costs_the_same_at_any_size(name: str) -> None:
    def cost(num_blocks: int) -> float:
        """Lines of code for each access, over many rounds of the cache."""
        engine = ToyEngine(ORDERS[name](num_blocks), num_blocks, seed=0)
        chance = random.Random(1)
        accesses = 0

        def run() -> None:
            nonlocal accesses
            for number in range(6 * num_blocks):
                group = int(chance.paretovariate(0.5)) % (num_blocks // 2)
                prompt = (group, group, number if chance.random() < 0.5 else 0)
                accesses += len(prompt)
                access(engine, prompt)

        lines = count_lines(run)
        assert engine.order.evictions > num_blocks
        return lines / accesses

    small, large = cost(40), cost(400)
    assert large < 1.2 * small
    assert large < 80
