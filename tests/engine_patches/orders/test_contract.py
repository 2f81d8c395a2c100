"""What every registered order keeps, whatever it prefers."""

from collections.abc import Sequence

import pytest

from engine_patches.orders import ORDERS, EvictionOrder
from tests.support.toy_engine import Prefix, ToyEngine

NUM_BLOCKS = 24

pytestmark = pytest.mark.parametrize("name", sorted(ORDERS))


def counters(order: EvictionOrder) -> tuple[int, ...]:
    return order.free, order.cached, order.hits, order.evictions, order.phases, order.marked


def fill(order: EvictionOrder, chains: Sequence[Sequence[str]]) -> None:
    """Run one request after the other, one for each chain."""
    for chain in chains:
        blocks = [order.pop() for _ in chain]
        parent: str | None = None
        for position, (block, key) in enumerate(zip(blocks, chain, strict=True)):
            order.cache(block, key, parent, position)
            parent = key
        order.release(blocks[::-1])


def test_is_named_and_starts_empty(name: str) -> None:
    order = ORDERS[name](5)
    assert order.name == name
    assert counters(order) == (5, 0, 0, 0, 0, 0)
    assert [order.pop() for _ in range(5)] == [0, 1, 2, 3, 4]
    with pytest.raises(IndexError):
        order.pop()


def test_worthless_blocks_are_reused_first_and_in_order(name: str) -> None:
    order = ORDERS[name](6)
    blocks = [order.pop() for _ in range(6)]
    for block in blocks[:3]:
        order.cache(block, f"key {block}", None, 0)
    order.release([0, 1, 2])
    order.discard([5, 3, 4])
    assert [order.pop() for _ in range(3)] == [5, 3, 4]
    assert order.evictions == 0


def test_same_seed_same_victims(name: str) -> None:
    def victims(seed: int) -> list[tuple[int, Prefix | None]]:
        engine = ToyEngine(ORDERS[name](NUM_BLOCKS, seed), NUM_BLOCKS, seed=3)
        for _ in range(800):
            engine.step(rough=False)
        return engine.victims

    assert victims(7) == victims(7)


@pytest.mark.parametrize("windowed", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_random_use_keeps_count_and_never_takes_a_block_in_use(name: str, seed: int, windowed: bool) -> None:
    order = ORDERS[name](NUM_BLOCKS, seed)
    engine = ToyEngine(order, NUM_BLOCKS, seed, windowed=windowed)
    for _ in range(1500):
        engine.step(rough=True)
        assert order.free == engine.num_free
        assert order.cached == len(engine.key_of)
        free = [block for block in range(NUM_BLOCKS) if engine.refs[block] == 0]
        assert sorted(order.walk()) == free
    while order.free:
        engine.allocate()
    assert not [block for block in range(NUM_BLOCKS) if engine.refs[block] == 0]


@pytest.mark.parametrize("seed", range(3))
def test_walk_goes_on_behind_a_block_and_changes_nothing(name: str, seed: int) -> None:
    order = ORDERS[name](NUM_BLOCKS, seed)
    engine = ToyEngine(order, NUM_BLOCKS, seed)
    checked = 0
    for _ in range(300):
        engine.step(rough=True)
        whole, before = list(order.walk()), counters(order)
        for place, block in enumerate(whole):
            assert list(order.walk(block)) == whole[place + 1 :]
            checked += 1
        for block in range(NUM_BLOCKS):
            if engine.refs[block]:
                assert list(order.walk(block)) == whole
        assert counters(order) == before
        assert list(order.walk()) == whole
    assert checked > 500


def test_walk_has_children_before_parents(name: str) -> None:
    order = ORDERS[name](9)
    fill(order, [("a", "ab", "abc"), ("d", "de"), ("f", "fg", "fgh", "fghi")])
    walk = list(order.walk())
    for chain in ([0, 1, 2], [3, 4], [5, 6, 7, 8]):
        assert [block for block in walk if block in chain] == chain[::-1]


def test_a_pinned_block_stays(name: str) -> None:
    order = ORDERS[name](4)
    fill(order, [("a",), ("b",), ("c",), ("d",)])
    order.hit(1)
    order.pin(2)
    order.pin(2)  # again: harmless
    assert order.free == 2
    assert {order.pop(), order.pop()} == {0, 3}
    assert order.hits == 1
    order.release([2, 1])
    assert {order.pop(), order.pop()} == {1, 2}


def test_losing_the_last_copy_counts_as_an_eviction(name: str) -> None:
    order = ORDERS[name](3)
    blocks = [order.pop() for _ in range(3)]
    order.cache(0, "a", None, 0)
    order.cache(1, "a", None, 0)
    order.cache(2, "b", None, 0)
    assert order.cached == 3
    order.release(blocks)
    for _ in range(3):
        order.pop()
    assert order.evictions == 2
    assert order.cached == 0


def test_a_moved_key_is_the_targets(name: str) -> None:
    order = ORDERS[name](3)
    for _ in range(3):
        order.pop()
    order.cache(0, "a", None, 0)
    order.cache(1, "ab", "a", 1)
    order.move(1, 2)
    order.uncache(1)  # has none: harmless
    assert order.cached == 2
    order.discard([1])
    order.release([2, 0])
    assert [order.pop() for _ in range(3)] == [1, 2, 0]


def test_clear_voids_the_keys_and_keeps_the_blocks(name: str) -> None:
    order = ORDERS[name](6)
    fill(order, [("a", "ab", "abc"), ("d", "de")])
    order.clear()
    assert (order.free, order.cached, order.marked) == (6, 0, 0)
    assert sorted(order.walk()) == list(range(6))
    assert sorted(order.pop() for _ in range(6)) == list(range(6))
    assert order.evictions == 0


def test_a_released_block_without_a_key_does_not_go_first(name: str) -> None:
    order = ORDERS[name](3)
    for _ in range(3):
        order.pop()
    order.cache(0, "a", None, 0)
    order.release([0])
    order.release([1])  # somebody still reads it
    order.discard([2])
    assert order.pop() == 2
    assert {order.pop(), order.pop()} == {0, 1}
    assert order.evictions == 1
