"""The optimum against every possible choice of leaves, and its two passes."""

import random
import tracemalloc
from collections.abc import Sequence
from functools import cache as memoize

import pytest

from engine_patches.orders import ORDERS
from router.sim.eviction.optimum import NEVER, Optimum, next_uses
from router.sim.eviction.replay import Cache, replay
from router.sim.trace import Block, Request

Paths = Sequence[Sequence[Block]]
Blocks = frozenset[str]


def hits_of(paths: Paths, capacity: int) -> int:
    requests = [Request(path) for path in paths]
    with next_uses(requests, capacity) as uses:
        done = replay(Optimum(capacity, uses), requests)
    assert done.accesses == sum(map(len, paths))
    return done.hits


def best_hits(paths: Sequence[Sequence[str]], capacity: int) -> int:
    """By trying all: the state is the set of cached blocks; before a request any leaves out of use may go."""

    @memoize
    def best(index: int, cached: Blocks) -> int:
        if index == len(paths):
            return 0
        path = frozenset(paths[index])
        return max(
            len(path & kept) + best(index + 1, path | kept)
            for kept in shrink(cached, path)
            if len(path | kept) <= capacity
        )

    def shrink(cached: Blocks, path: Blocks) -> set[Blocks]:
        """What may be left of `cached`."""
        found, waiting = {cached}, [cached]
        while waiting:
            kept = waiting.pop()
            inner = {block[:-1] for block in kept}
            for block in kept - inner - path:
                if (smaller := kept - {block}) not in found:
                    found.add(smaller)
                    waiting.append(smaller)
        return found

    return best(0, frozenset())


def draw_paths(rng: random.Random, requests: int, branches: int, longest: int) -> list[list[str]]:
    """Each block is named by its whole path, so that a parent is the name without its end."""
    names = ["".join(rng.choice("abcd"[:branches]) for _ in range(rng.randint(1, longest))) for _ in range(requests)]
    return [[name[: end + 1] for end in range(len(name))] for name in names]


@pytest.mark.parametrize("seed", range(60))
def test_no_choice_of_leaves_is_better(seed: int) -> None:
    rng = random.Random(seed)
    longest = rng.randint(1, 4)
    paths = draw_paths(rng, rng.randint(3, 9), rng.randint(2, 4), longest)
    capacity = rng.randint(longest, longest + 3)
    assert hits_of(paths, capacity) == best_hits(paths, capacity)


def test_by_hand() -> None:
    # A loop of three over two blocks: one of them can stay. The first two miss, then every other request hits.
    assert hits_of([["a"], ["b"], ["c"]] * 3, 2) == 3


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("name", ORDERS)
def test_no_order_is_better(name: str, seed: int) -> None:
    """Neither where requests are longer than the cache, and ids repeat."""
    rng = random.Random(seed)
    paths: list[Sequence[Block]] = [[rng.randrange(30) for _ in range(rng.randint(1, 6))] for _ in range(400)]
    paths += draw_paths(rng, 400, 3, 12)
    found = replay(Cache(ORDERS[name](10, seed=0)), map(Request, paths)).hits
    assert hits_of(paths, 10) >= found > 0


def test_next_uses() -> None:
    requests = [Request(blocks) for blocks in (["a", "b"], ["a", "c", "a"], ["a", "b", "c"])]
    with next_uses(requests, 2) as uses:
        assert list(uses) == [2, 5, 4, NEVER, NEVER, NEVER]


def test_next_uses_in_a_file_that_grew() -> None:
    requests = [Request(range(1000)) for _ in range(300)]
    with next_uses(requests, 1000) as uses:
        assert list(uses) == [*range(1000, 300_000), *[NEVER] * 1000]


def peak_bytes(requests: int) -> int:
    tracemalloc.start()
    try:
        stream = (Request((number % 50, 100 + number % 70)) for number in range(requests))
        with next_uses(stream, 20) as uses:
            again = (Request((number % 50, 100 + number % 70)) for number in range(requests))
            assert replay(Optimum(20, uses), again).requests == requests
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_memory_does_not_grow_with_the_trace() -> None:
    """The same blocks ten times as often: the heap of leaves and both passes stay as they are."""
    assert peak_bytes(20_000) < 1.2 * peak_bytes(2_000)
