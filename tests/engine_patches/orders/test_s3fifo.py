import pytest

from engine_patches.orders import S3FIFO, Key
from tests.support.flat_requests import Textbook, access, draw_accesses, drive, free_leaves, standing, victims_of
from tests.support.toy_engine import Prefix, ToyEngine


class TextbookS3FIFO(Textbook):
    def __init__(self, size: int) -> None:
        super().__init__(size)
        self.cap = max(1, size // 10)
        self.small: list[Prefix] = []
        self.main: list[Prefix] = []
        self.ghosts: list[Prefix] = []
        self.uses: dict[Prefix, int] = {}

    def contents(self) -> list[Prefix]:
        return self.small + self.main

    def hit(self, key: Prefix) -> None:
        self.uses[key] = min(3, self.uses[key] + 1)

    def insert(self, key: Prefix) -> None:
        self.uses[key] = 0
        if key in self.ghosts:
            self.ghosts.remove(key)
            self.main.append(key)
        else:
            self.small.append(key)

    def evict(self) -> Prefix:
        while True:
            if self.small and (len(self.small) >= self.cap or not self.main):
                key = self.small.pop(0)
                if self.uses[key] < 2:
                    self.ghosts = [*self.ghosts, key][-(self.size - self.cap) :]
                    return key
                self.uses[key] = 0
                self.main.append(key)
            else:
                key = self.main.pop(0)
                if self.uses[key] == 0:
                    return key
                self.uses[key] -= 1
                self.main.append(key)


@pytest.mark.parametrize("size", [20, 35])
@pytest.mark.parametrize("seed", range(4))
def test_is_the_published_algorithm_on_single_blocks(seed: int, size: int) -> None:
    accesses = list(draw_accesses(seed, 3000, 40))
    textbook = TextbookS3FIFO(size)
    expected = [textbook.access(key) for key in accesses]
    assert victims_of(S3FIFO(size), size, accesses) == expected
    assert sum(map(len, expected)) > 500


def mains(order: S3FIFO) -> set[Key | None]:
    return {node.key for node in order._node_of if node is not None and node.mark == 1}


def test_a_key_that_moves_to_the_main_queue_takes_its_ancestors_along() -> None:
    engine = ToyEngine(S3FIFO(4), 4, seed=0)
    for _ in range(3):
        access(engine, (1, 1, 1))
    assert engine.order.small_size == 3
    access(engine, (2, 2))
    assert engine.victims[-1][1] == (1, 1, 1)  # moved, and then judged there, for want of another leaf
    assert mains(engine.order) == {(1,), (1, 1)}
    assert engine.order.small_size == 2


def test_a_ghost_that_returns_joins_the_main_queue() -> None:
    engine = ToyEngine(S3FIFO(10), 10, seed=0)
    for key in range(11):
        access(engine, (key,))
    assert mains(engine.order) == set()
    assert access(engine, (0,)) == [(1,)]
    assert mains(engine.order) == {(0,)}


def test_a_parent_joins_at_the_back() -> None:
    engine = ToyEngine(S3FIFO(4), 4, seed=0)
    access(engine, (1, 1))
    access(engine, (2, 2))
    assert [access(engine, (key,)) for key in (3, 4, 5)] == [[(1, 1)], [(2, 2)], [(1,)]]


def test_a_key_in_use_keeps_its_place_until_its_turn() -> None:
    engine = ToyEngine(S3FIFO(3), 3, seed=0)
    for key in ((1,), (2,), (3,)):
        access(engine, key)
    engine.admit((1,))
    engine.finish(engine.running[0])
    assert list(engine.order.walk()) == [0, 1, 2]
    engine.admit((1,))
    assert access(engine, (4,)) == [(2,)]
    engine.finish(engine.running[0])
    assert list(engine.order.walk()) == [2, 1, 0]  # 1 has been used twice by now: it goes last
    assert [node.key for node in engine.order._queues[0].walk()] == [(3,), (4,), (1,)]


@pytest.mark.parametrize("windowed", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_every_leaf_stands_in_one_queue_and_sizes_are_right(seed: int, windowed: bool) -> None:
    order = S3FIFO(24)
    for _ in drive(order, 24, seed, windowed=windowed):
        small, main = standing(*order._queues)
        assert free_leaves(order) == {id(node) for node in small + main if node.leaf_index >= 0}
        assert all(node.mark < 1 for node in small)
        assert all(node.mark == 1 for node in main)
        keyed = {id(node): node for node in order._node_of if node is not None and node.key is not None}.values()
        assert order.small_size == sum(node.mark == 0 for node in keyed)
        assert all(node.mark >= 0 and 0 <= node.count <= 3 for node in keyed)
    assert order.evictions > 50


def test_ghosts_reach_their_cap_and_hold_it() -> None:
    order = S3FIFO(50)
    engine = ToyEngine(order, 50, seed=0)
    sizes = []
    for key in range(300):
        access(engine, (key,))
        sizes.append(len(order._ghosts))
    assert max(sizes) == sizes[-1] == 45
