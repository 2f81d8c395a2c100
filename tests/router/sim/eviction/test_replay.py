"""The replay against traces worked out by hand, and what it promises to an order."""

import random
from collections.abc import Sequence

import pytest

from engine_patches.orders import LRU, ORDERS, EvictionOrder
from router.sim.eviction.replay import Cache, replay
from router.sim.trace import Block, Request

Paths = Sequence[Sequence[Block]]


def serve(order: EvictionOrder, paths: Paths) -> list[int]:
    """The hits of each request."""
    cache = Cache(order)
    return [cache.serve(Request(path)) for path in paths]


def test_by_hand() -> None:
    # Capacity 4. After 1 2 3: 3 2 1 from old to young, one block empty. 1 4 takes it. 5 6 evicts 3 and 2.
    paths = [[1, 2, 3], [1, 4], [5, 6], [1, 4], [1, 2, 3]]
    cache = Cache(LRU(4))
    seen = []
    for path in paths:
        hits = cache.serve(Request(path))
        seen.append((hits, list(cache.evicted)))
    assert seen == [(0, []), (1, []), (0, [3, 2]), (2, []), (1, [6, 5])]


def test_totals() -> None:
    paths = [[1, 2, 3], [1, 4], [5, 6], [1, 4], [1, 2, 3]]
    done = replay(Cache(LRU(4)), map(Request, paths))
    assert (done.requests, done.accesses, done.hits, done.fallback_requests) == (5, 12, 4, 0)
    assert done.hit_rate == 4 / 12
    assert done.seconds > 0
    assert done.us_per_access == 1e6 * done.seconds / 12
    assert done.fallback_share == 0


def test_nothing_to_serve() -> None:
    done = replay(Cache(LRU(2)), [Request([])])
    assert (done.requests, done.accesses, done.hit_rate) == (1, 0, 0)


class Guarded(LRU):
    """In charge of every other request."""

    @property
    def fallback(self) -> bool:  # type: ignore[override]  # LRU's is a constant
        return self.hits % 2 == 1


def test_share_of_fallback() -> None:
    done = replay(Cache(Guarded(2)), map(Request, [[1], [1], [1], [1]]))
    assert (done.fallback_requests, done.fallback_share) == (2, 0.5)


@pytest.mark.parametrize("name", ORDERS)
def test_twice_in_a_request(name: str) -> None:
    """The second time the block is in use: a hit, the block being cached before or not."""
    assert serve(ORDERS[name](2, seed=0), [["a", "a"], ["a", "b", "a"]]) == [1, 2]


@pytest.mark.parametrize("name", ORDERS)
def test_longer_than_the_cache(name: str) -> None:
    order = ORDERS[name](3, seed=0)
    assert serve(order, [[1, 2, 3, 4, 5], [1, 2, 3, 4, 5, 1]]) == [0, 4]
    assert order.free == 3


@pytest.mark.parametrize("name", ORDERS)
def test_whole_numbers_and_words(name: str) -> None:
    assert serve(ORDERS[name](4, seed=0), [[1, 2], ["1", "2"], [1, 2]]) == [0, 0, 2]


@pytest.mark.parametrize("name", ORDERS)
def test_behind_another_parent_it_is_another_block(name: str) -> None:
    assert serve(ORDERS[name](9, seed=0), [[1, 2, 3], [2, 3], [4, 2, 3], [1, 2, 3], [2, 3, 1]]) == [0, 0, 0, 3, 2]


@pytest.mark.parametrize("name", ORDERS)
def test_any_ids(name: str) -> None:
    """Whatever the trace, an order is driven as its contract says, and forgets only what makes room."""
    rng = random.Random(1)
    cache = Cache(ORDERS[name](8, seed=0))
    held = misses = evicted = 0
    for _ in range(3000):
        path = [rng.randrange(5) for _ in range(rng.randint(1, 12))]
        hits = cache.serve(Request(path))
        assert 0 <= hits <= len(path)
        assert cache.order.free == 8
        misses += len(path) - hits
        evicted += len(cache.evicted)
        held = cache.order.cached
    assert misses == evicted + held


@pytest.mark.parametrize("name", ORDERS)
def test_the_same_lots_for_the_same_seed(name: str) -> None:
    rng = random.Random(2)
    paths = [[group, 10 * group + rng.randrange(9)] for group in rng.choices(range(1, 20), k=500)]
    one, two = (serve(ORDERS[name](12, seed=5), paths) for _ in range(2))
    assert one == two
    assert sum(one) > 100
