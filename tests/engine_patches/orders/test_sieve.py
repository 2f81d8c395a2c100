import pytest

from engine_patches.orders import SIEVE
from tests.support.flat_requests import Textbook, access, draw_accesses, drive, free_leaves, standing, victims_of
from tests.support.toy_engine import Prefix, ToyEngine


class TextbookSIEVE(Textbook):
    def __init__(self, size: int) -> None:
        super().__init__(size)
        self.queue: list[Prefix] = []  # the oldest key first
        self.visited: set[Prefix] = set()
        self.hand = 0

    def contents(self) -> list[Prefix]:
        return self.queue

    def hit(self, key: Prefix) -> None:
        self.visited.add(key)

    def insert(self, key: Prefix) -> None:
        self.queue.append(key)

    def evict(self) -> Prefix:
        while True:
            key = self.queue[self.hand]
            if key not in self.visited:
                del self.queue[self.hand]
                self.hand %= len(self.queue)
                return key
            self.visited.discard(key)
            self.hand = (self.hand + 1) % len(self.queue)


@pytest.mark.parametrize("seed", range(6))
def test_is_the_published_algorithm_on_single_blocks(seed: int) -> None:
    accesses = list(draw_accesses(seed, 3000, 30))
    textbook = TextbookSIEVE(20)
    expected = [textbook.access(key) for key in accesses]
    assert victims_of(SIEVE(20), 20, accesses) == expected
    assert sum(map(len, expected)) > 500


def test_a_hit_moves_nothing_and_saves_once() -> None:
    engine = ToyEngine(SIEVE(3), 3, seed=0)
    for key in ((1,), (2,), (3,), (1,)):
        access(engine, key)
    assert list(engine.order.walk()) == [1, 2, 0]
    assert access(engine, (4,)) == [(2,)]  # the hand has passed 1
    assert access(engine, (5,)) == [(3,)]
    assert access(engine, (6,)) == [(4,)]
    assert access(engine, (7,)) == [(5,)]


def test_a_round_takes_one_block_from_each_chain() -> None:
    engine = ToyEngine(SIEVE(6), 6, seed=0)
    access(engine, (1, 1, 1))
    access(engine, (2, 2, 2))
    assert access(engine, (3, 3)) == [(1, 1, 1), (2, 2, 2)]
    assert [access(engine, (key,)) for key in (4, 5, 6, 7)] == [[(1, 1)], [(2, 2)], [(3, 3)], [(4,)]]


def test_a_key_in_use_keeps_its_place() -> None:
    engine = ToyEngine(SIEVE(3), 3, seed=0)
    for key in ((1,), (2,), (3,)):
        access(engine, key)
    engine.admit((1,))
    access(engine, (3,))
    engine.finish(engine.running[0])
    assert [node.key for node in engine.order._queue.walk()] == [(1,), (2,), (3,)]


def test_a_key_in_use_when_the_hand_comes_by_joins_anew() -> None:
    engine = ToyEngine(SIEVE(3), 3, seed=0)
    for key in ((1,), (2,), (3,)):
        access(engine, key)
    engine.admit((1,))
    assert access(engine, (4,)) == [(2,)]
    engine.finish(engine.running[0])
    assert [node.key for node in engine.order._queue.walk()] == [(3,), (4,), (1,)]


@pytest.mark.parametrize("windowed", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_every_leaf_stands_in_the_queue_once(seed: int, windowed: bool) -> None:
    order = SIEVE(24)
    for _ in drive(order, 24, seed, windowed=windowed):
        (queue,) = standing(order._queue)
        inside = {id(node) for node in queue}
        assert free_leaves(order) == {id(node) for node in queue if node.leaf_index >= 0}
        assert len(inside) <= 24
        assert order._hand is order._queue.end or id(order._hand) in inside
    assert order.evictions > 50
