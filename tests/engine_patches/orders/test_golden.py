"""Hits of every order on one small trace, to the block: a change here is a change of the order, meant or not.

After one that is meant, `python -m tests.engine_patches.orders.test_golden` prints the new numbers.
"""

from collections.abc import Iterator
from itertools import islice

import pytest

from engine_patches.orders import ORDERS
from router.sim.eviction.replay import Cache, ReplayResult, replay
from router.sim.eviction.workload import Workload
from router.sim.trace import Request

CAPACITY = 2500
GOLDEN = {
    "lru": 16_569,
    "rlt": 16_793,
    "gix": 20_451,
    "rlt_gix": 20_451,
    "lfu": 17_543,
    "sieve": 16_497,
    "s3fifo": 17_912,
    "arc": 19_675,
}


def requests() -> Iterator[Request]:
    """Shared prefixes by popularity, then conversations: 300 requests of each."""
    yield from islice(Workload("zipf").open(CAPACITY), 300)
    yield from islice(Workload("chat").open(CAPACITY), 300)


def count(name: str) -> ReplayResult:
    return replay(Cache(ORDERS[name](CAPACITY, 1)), requests())


def test_every_order_has_its_number() -> None:
    assert set(GOLDEN) == set(ORDERS)


@pytest.mark.parametrize("name", sorted(ORDERS))
def test_hits(name: str) -> None:
    assert count(name).hits == GOLDEN[name]


if __name__ == "__main__":
    for each in ORDERS:
        print(each, count(each))
