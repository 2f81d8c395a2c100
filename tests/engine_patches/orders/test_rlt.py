"""RLT against a naive model that recomputes everything from the definitions, its lots, and its cost."""

import random
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from engine_patches.orders import RLT
from tests.support.toy_engine import Prefix, ToyEngine, count_lines


class NaiveRLT:
    """The definition, with sets: which blocks may be evicted now, and what is marked. It passes events to `order`."""

    def __init__(self, order: RLT, num_blocks: int) -> None:
        self.order = order
        self.keys: dict[int, Prefix] = {}
        self.free = set(range(num_blocks))
        self.marked: set[Prefix] = set()
        self.phases = 0

    def cache(self, block: int, key: Prefix, parent: Prefix | None, position: int) -> None:
        self.order.cache(block, key, parent, position)
        self.keys[block] = key
        self.marked.add(key)

    def uncache(self, block: int) -> None:
        raise NotImplementedError("in rough steps only")

    def pin(self, block: int) -> None:
        raise NotImplementedError("in rough steps only")

    def hit(self, block: int) -> None:
        self.order.hit(block)
        self.free.discard(block)
        self.marked.add(self.keys[block])

    def release(self, blocks: Sequence[int]) -> None:
        self.order.release(blocks)
        for block in blocks:
            self.free.add(block)
            if self.keys[block] not in {key for other, key in self.keys.items() if other not in self.free}:
                self.marked.add(self.keys[block])
            self.check_marks()

    def discard(self, blocks: Sequence[int]) -> None:
        self.order.discard(blocks)
        self.free |= set(blocks)

    def pop(self) -> int:
        allowed = self.expendable() or self.unmarked_leaves()
        if not allowed:
            self.phases += 1
            self.marked.clear()
            allowed = self.unmarked_leaves()
        block = self.order.pop()
        assert block in allowed
        self.free.discard(block)
        key = self.keys.pop(block, None)
        if key is not None and key not in self.keys.values():
            self.marked.discard(key)
        return block

    def expendable(self) -> set[int]:
        copies = Counter(self.keys.values())
        return {block for block in self.free if block not in self.keys or copies[self.keys[block]] > 1}

    def unmarked_leaves(self) -> set[int]:
        parents = {key[:-1] for key in self.keys.values()}
        return {block for block in self.free if (key := self.keys[block]) not in parents and key not in self.marked}

    def check_marks(self) -> None:
        """Marked keys and keys in use, together, contain the parents of the marked ones."""
        in_use = {key for block, key in self.keys.items() if block not in self.free}
        for key in self.marked:
            assert len(key) == 1 or key[:-1] in self.marked | in_use


@pytest.mark.parametrize("seed", range(12))
def test_agrees_with_the_naive_model(seed: int) -> None:
    num_blocks = random.Random(seed).randint(6, 40)
    order = RLT(num_blocks, seed)
    naive = NaiveRLT(order, num_blocks)
    engine = ToyEngine(naive, num_blocks, seed)
    for _ in range(1200):
        engine.step(rough=False)
        naive.check_marks()
        assert order.phases == naive.phases
        assert order.marked == len(naive.marked & set(naive.keys.values()))
        assert order.free == len(naive.free)
    assert order.phases > 5
    assert order.evictions > 100


def test_the_victim_is_uniform_among_unmarked_leaves() -> None:
    """Eight unmarked leaves of unlike depth and age, 5000 lots: chi-square with 7 degrees of freedom below its
    0.9999 quantile, 29.9. Marked leaves, inner keys and keys in use are never drawn."""

    def draw(seed: int) -> Prefix | None:
        order = RLT(40, seed)
        engine = ToyEngine(order, 40, seed=0)
        for root in range(10):
            engine.admit((root, *range(root % 4)))
        while engine.running:
            engine.finish(engine.running[0])
        while order.phases == 0:  # all is marked: fill up until the first phase ends
            engine.admit((100 + len(engine.victims),))
        victim = engine.victims[-1][1]
        return victim

    first = [draw(seed) for seed in range(5000)]
    counts = Counter(first)
    expected = {(root, *range(root % 4)) for root in range(10)}
    assert set(counts) == expected
    mean = len(first) / len(expected)
    assert sum((count - mean) ** 2 / mean for count in counts.values()) < 33.7


def test_a_new_phase_costs_the_same_at_any_size() -> None:
    def cost(num_blocks: int) -> int:
        order = RLT(num_blocks, 1)
        for block in range(num_blocks):
            order.pop()
            order.cache(block, block, None, 0)
        order.release(range(num_blocks))
        assert order.marked == num_blocks
        lines = count_lines(order.pop)
        assert (order.phases, order.marked) == (1, 0)
        return lines

    assert cost(100) == cost(10_000) < 60


def test_no_event_costs_more_than_a_constant_for_each_block() -> None:
    order = RLT(200, 1)
    engine = ToyEngine(order, 200, seed=1)
    worst = 0.0

    def watch(verb: Callable[..., Any]) -> Callable[..., Any]:
        def watched(*args: Any) -> Any:
            nonlocal worst
            result = None

            def call() -> None:
                nonlocal result
                result = verb(*args)

            blocks = max(1, len(args[0])) if args and isinstance(args[0], list) else 1
            worst = max(worst, count_lines(call) / blocks)
            return result

        return watched

    for name in ("cache", "hit", "pop", "release"):
        setattr(order, name, watch(getattr(order, name)))
    for _ in range(1500):
        engine.step(rough=False)
    assert order.phases > 2
    assert 0 < worst < 80


def test_children_belong_to_the_key_and_survive_its_return() -> None:
    order = RLT(4, 0)
    for _ in range(4):
        order.pop()
    order.cache(0, "a", None, 0)
    order.cache(1, "ab", "a", 1)
    order.cache(2, "a", None, 0)  # a copy
    order.uncache(0)  # losing one of two costs nothing
    order.discard([0, 3])
    order.release([1, 2])
    assert [order.pop(), order.pop()] == [0, 3]
    order.uncache(2)  # now the key is gone, its child is not
    assert order.pop() == 2
    order.cache(2, "a", None, 0)  # it returns, and is an inner key at once
    order.release([2])
    assert [order.pop(), order.pop()] == [1, 2]


def test_a_spare_copy_goes_first_and_takes_over_when_it_is_hit() -> None:
    order = RLT(3, 0)
    for _ in range(3):
        order.pop()
    order.cache(0, "a", None, 0)
    order.cache(1, "a", None, 0)
    order.cache(2, "b", None, 0)
    order.release([0, 1, 2])
    order.hit(0)  # one copy is in use again: the other is worthless
    assert order.pop() == 1
    order.discard([1])
    order.release([0])
    assert order.pop() == 1


def test_a_pin_without_reuse_marks_nothing() -> None:
    order = RLT(2, 0)
    for block in range(2):
        order.pop()
        order.cache(block, block, None, 0)
    order.release([0, 1])
    first = order.pop()  # a new phase: nothing is marked
    other = 1 - first
    order.pin(other)
    order.release([other])
    assert order.marked == 0
    order.hit(other)
    assert order.marked == 1


def test_an_early_block_given_back_before_a_later_one_can_go() -> None:
    """A sliding window: without this rule no free block could be evicted, and the engine would stand still."""
    order = RLT(3, 0)
    for _ in range(3):
        order.pop()
    for position, key in enumerate(["a", "ab", "abc"]):
        order.cache(position, key, key[:-1] or None, position)
    order.release([0])
    assert order.pop() == 0
    order.release([1])
    order.release([2])
    assert [order.pop(), order.pop()] == [2, 1]


def test_memory_stays_bounded_when_windows_leave_gone_parents_behind() -> None:
    order = RLT(16, 0)
    engine = ToyEngine(order, 16, seed=2, windowed=True)
    engine.admit((1, 2, 3))
    most = 0
    for _ in range(3000):
        engine.grow(engine.running[0])
        most = max(most, len(order._nodes))
    assert 16 <= most <= 32
