import pytest

from engine_patches.orders import ARC
from tests.support.flat_requests import Textbook, access, draw_accesses, drive, free_leaves, standing, victims_of
from tests.support.toy_engine import Prefix, ToyEngine


class GhostList:
    """At most `size` keys in 2 `size` places; a key that returns leaves its place empty."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.places: list[Prefix | None] = []

    def __len__(self) -> int:
        return sum(key is not None for key in self.places)

    def __contains__(self, key: Prefix) -> bool:
        return key in self.places

    def append(self, key: Prefix) -> None:
        self.places.append(key)
        while len(self) > self.size or len(self.places) > 2 * self.size:
            self.places.pop(0)

    def remove(self, key: Prefix) -> None:
        self.places[self.places.index(key)] = None


class TextbookARC(Textbook):
    """With ghost lists of n each, and a victim chosen before the new key is known."""

    def __init__(self, size: int) -> None:
        super().__init__(size)
        self.t1: list[Prefix] = []
        self.t2: list[Prefix] = []
        self.p = 0.0
        self.b1, self.b2 = GhostList(size), GhostList(size)

    def contents(self) -> list[Prefix]:
        return self.t1 + self.t2

    def hit(self, key: Prefix) -> None:
        (self.t1 if key in self.t1 else self.t2).remove(key)
        self.t2.append(key)

    def insert(self, key: Prefix) -> None:
        if key in self.b1:
            self.p = min(self.size, self.p + max(1, len(self.b2) / len(self.b1)))
            self.b1.remove(key)
            self.t2.append(key)
        elif key in self.b2:
            self.p = max(0, self.p - max(1, len(self.b1) / len(self.b2)))
            self.b2.remove(key)
            self.t2.append(key)
        else:
            self.t1.append(key)

    def evict(self) -> Prefix:
        first, ghosts = (self.t1, self.b1) if len(self.t1) > self.p or not self.t2 else (self.t2, self.b2)
        key = first.pop(0)
        ghosts.append(key)
        return key


@pytest.mark.parametrize("size", [8, 20])
@pytest.mark.parametrize("seed", range(4))
def test_is_the_published_algorithm_on_single_blocks(seed: int, size: int) -> None:
    accesses = list(draw_accesses(seed, 3000, 30))
    textbook, order = TextbookARC(size), ARC(size)
    expected = [textbook.access(key) for key in accesses]
    assert victims_of(order, size, accesses) == expected
    assert sum(map(len, expected)) > 500
    assert (order.t1_size, order.t1_target) == (len(textbook.t1), textbook.p)


def test_what_is_used_again_outlives_a_scan() -> None:
    engine = ToyEngine(ARC(4), 4, seed=0)
    for prompt in ((1, 1), (1, 1), (2,), (3,)):
        access(engine, prompt)
    assert engine.order.t1_size == 2
    assert [access(engine, (key,)) for key in (4, 5, 6)] == [[(2,)], [(3,)], [(4,)]]


def test_a_short_list_that_is_missed_gets_room() -> None:
    engine = ToyEngine(ARC(4), 4, seed=0)
    for prompt in ((1, 1), (1, 1), (2,), (3,), (4,)):
        access(engine, prompt)
    assert engine.order.t1_target == 0
    assert access(engine, (2,)) == [(3,)]
    assert engine.order.t1_target == 1  # and T1 has no more than one key
    assert access(engine, (5,)) == [(1, 1)]


def test_an_inner_key_is_set_aside_and_returns_to_the_front() -> None:
    """(1,) is old in T2 while its child, used once, lives in T1."""
    engine = ToyEngine(ARC(4), 4, seed=0)
    order = engine.order
    for prompt in ((1,), (1, 1), (2,), (2,), (3,)):
        access(engine, prompt)
    order.t1_target = 4.0  # T1 may fill the cache: victims come from T2
    assert [node.key for node in order._lists[1].walk()] == [(1,), (2,)]
    assert access(engine, (4,)) == [(2,)]
    assert [node.key for node in order._lists[1].walk()] == []
    order.t1_target = 0.0
    assert access(engine, (5,)) == [(1, 1)]
    assert [node.key for node in order._lists[1].walk()] == [(1,)]


@pytest.mark.parametrize("windowed", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_every_leaf_stands_in_one_list_and_sizes_are_right(seed: int, windowed: bool) -> None:
    order = ARC(24)
    for _ in drive(order, 24, seed, windowed=windowed):
        t1, t2 = standing(*order._lists)
        assert free_leaves(order) == {id(node) for node in t1 + t2 if node.leaf_index >= 0}
        assert all(node.free and node.mark < 1 for node in t1)
        assert all(node.free and node.mark == 1 for node in t2)
        keyed = {id(node): node for node in order._node_of if node is not None and node.key is not None}.values()
        assert order.t1_size == sum(node.mark == 0 for node in keyed)
        assert 0 <= order.t1_target <= 24
    assert order.evictions > 50


def test_ghosts_reach_their_cap_and_hold_it() -> None:
    """A round of keys used twice, then keys used once: each ghost list fills up."""
    order = ARC(20)
    engine = ToyEngine(order, 20, seed=0)
    sizes = []
    for key in range(100):
        for _ in range(2):
            access(engine, (key,))
        sizes.append([len(ghosts) for ghosts in order._ghosts])
    for key in range(1000, 1100):
        access(engine, (key,))
        sizes.append([len(ghosts) for ghosts in order._ghosts])
    assert [max(column) for column in zip(*sizes, strict=True)] == sizes[-1] == [20, 20]
