import pytest

from engine_patches.orders import LFU
from engine_patches.orders.lfu import MOST_COUNT
from tests.support.flat_requests import Textbook, access, draw_accesses, drive, free_leaves, standing, victims_of
from tests.support.toy_engine import Prefix, ToyEngine


class TextbookLFU(Textbook):
    def __init__(self, size: int) -> None:
        super().__init__(size)
        self.cached: list[Prefix] = []  # the least recently used key first
        self.count: dict[Prefix, int] = {}
        self.ghosts: dict[Prefix, int] = {}

    def contents(self) -> list[Prefix]:
        return self.cached

    def hit(self, key: Prefix) -> None:
        self.cached.remove(key)
        self.cached.append(key)
        self.count[key] += 1

    def insert(self, key: Prefix) -> None:
        self.cached.append(key)
        self.count[key] = self.ghosts.pop(key, 0) + 1

    def evict(self) -> Prefix:
        key = min(self.cached, key=self.count.__getitem__)
        self.cached.remove(key)
        self.ghosts[key] = self.count.pop(key)
        if len(self.ghosts) > 4 * self.size:
            del self.ghosts[next(iter(self.ghosts))]
        return key


@pytest.mark.parametrize("size", [5, 20])
@pytest.mark.parametrize("seed", range(4))
def test_is_the_definition_on_single_blocks(seed: int, size: int) -> None:
    accesses = list(draw_accesses(seed, 3000, 30))
    textbook = TextbookLFU(size)
    expected = [textbook.access(key) for key in accesses]
    assert victims_of(LFU(size), size, accesses) == expected
    assert sum(map(len, expected)) > 500


def test_of_equals_a_chain_goes_before_what_is_newer() -> None:
    engine = ToyEngine(LFU(5), 5, seed=0)
    access(engine, (1, 1, 1))
    access(engine, (2, 2))
    assert list(engine.order.walk()) == [2, 4, 1, 3, 0]  # the leaves, then inner keys
    assert access(engine, (3, 3)) == [(1, 1, 1), (1, 1)]
    access(engine, (1,))
    assert access(engine, (4, 4)) == [(2, 2), (2,)]


def test_a_count_outlives_an_eviction() -> None:
    engine = ToyEngine(LFU(2), 2, seed=0)
    for key in (1, 1, 1, 2, 2, 2, 2, 3):
        access(engine, (key,))
    assert access(engine, (1,)) == [(3,)]  # used for the fourth time: as often as 2, and later
    assert access(engine, (4,)) == [(2,)]


def test_counts_and_lists_are_capped() -> None:
    engine = ToyEngine(LFU(2), 2, seed=0)
    for _ in range(MOST_COUNT + 50):
        access(engine, (1,))
    assert max(engine.order._rings) == len(engine.order._rings) == MOST_COUNT
    access(engine, (2,))
    assert access(engine, (3,)) == [(2,)]


@pytest.mark.parametrize("windowed", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_every_leaf_stands_in_the_list_of_its_count(seed: int, windowed: bool) -> None:
    order = LFU(24)
    for _ in drive(order, 24, seed, windowed=windowed):
        counts = list(order._rings)
        inside = standing(*order._rings.values())
        leaves = set()
        for count, nodes in zip(counts, inside, strict=True):
            assert all(node.free and (node.count or 1) == count for node in nodes)
            here = {id(node) for node in nodes if node.leaf_index >= 0}
            assert not here or order._filled >> count & 1
            leaves |= here
        assert leaves == free_leaves(order)
    assert order.evictions > 50


def test_ghosts_reach_their_cap_and_hold_it() -> None:
    order = LFU(20)
    engine = ToyEngine(order, 20, seed=0)
    sizes = []
    for key in range(300):
        access(engine, (key,))
        sizes.append(len(order._ghosts))
    assert max(sizes) == sizes[-1] == 80
