"""GIX's books against the definitions, recomputed from what the toy engine did."""

from collections import Counter
from collections.abc import Hashable, Sequence
from typing import Any, TypeVar

import pytest

from engine_patches.orders import GIX, RLTGIX
from engine_patches.orders.gix import ANCIENT, GHOSTS_IN_CAPACITY, SLOTS, GittinsNode, GittinsOrder
from engine_patches.orders.structures.hazard import CLASSES, HORIZON
from tests.support.toy_engine import ToyEngine, count_lines

LEARNED = pytest.mark.parametrize("order_class", [GIX, RLTGIX], ids=["gix", "rlt_gix"])
G = TypeVar("G", bound=GittinsOrder[Any])
Cached = dict[Hashable, int]  # the block of each cached key


def build(order_class: type[G], num_blocks: int, seed: int = 0, *, epoch: int = 20) -> G:
    """An order with epochs of `epoch` accesses: short, so that small runs pass the horizon."""
    order = order_class(num_blocks, seed)
    order._epoch_length = order._accesses_left = order._hazards._epoch_length = epoch
    return order


def check(order: GittinsOrder[Any], engine: ToyEngine[Any]) -> None:
    """Every count from its definition: what is at risk, which bucket each leaf is in, and that no other is filled."""
    nodes = {node for node in order._node_of if node is not None}
    at_risk = Counter(
        (node.reuse_class, node.epoch) for node in nodes if node.free and order._epoch - node.epoch < HORIZON
    )
    for entry in order._ghosts._entries.values():
        reuse_class, epoch = entry >> 4 & 15, (entry & (1 << 48) - 1) >> 8
        if order._epoch - epoch < HORIZON:
            at_risk[reuse_class, epoch] += 1
    assert sum(order._at_risk) == sum(at_risk.values())
    assert all(
        order._at_risk[reuse_class * HORIZON + epoch % HORIZON] == n for (reuse_class, epoch), n in at_risk.items()
    )
    parents = {node.parent for node in nodes if node.free}
    leaves = {node for node in nodes if node.free and node not in parents}
    found = set()
    filled = 0
    for bucket in range(CLASSES * SLOTS):
        reuse_class, slot = divmod(bucket, SLOTS)
        lists = [order._buckets[bucket]] if slot != ANCIENT else list(order._ancient[reuse_class].values())
        for place, node in ((place, node) for leaves_ in lists for place, node in enumerate(leaves_)):
            assert node.leaf_index == place
            assert node.reuse_class == reuse_class
            assert (order._epoch - node.epoch >= HORIZON) if slot == ANCIENT else node.epoch % HORIZON == slot
            found.add(node)
        if any(lists):
            filled |= 1 << order._rank[bucket]
        assert slot != ANCIENT or all(lists)
    assert found == leaves
    assert order._filled == filled
    assert sorted(order._by_rank) == list(range(CLASSES * SLOTS))
    assert all(0 <= node.hits <= 3 for node in nodes)
    in_use = {node for node in nodes if not node.free and node.key is not None}
    assert {node.key for node in in_use} == {
        engine.key_of[b] for b in range(engine.num_blocks) if engine.refs[b] and b in engine.key_of
    }


@LEARNED
@pytest.mark.parametrize("windowed", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_books_agree_with_the_definitions(order_class: type[G], seed: int, windowed: bool) -> None:
    order = build(order_class, 30, seed)
    engine = ToyEngine(order, 30, seed, windowed=windowed)
    for step in range(2500):
        engine.step(rough=True)
        if step % 11 == 0:
            check(order, engine)
    assert order._epoch > HORIZON + 10
    assert order.evictions > 300
    assert sum(order._events) > 10


def serve(order: GittinsOrder[Any], cached: Cached, request: Sequence[Hashable]) -> int:
    """Run one request from start to end, as a replay does. Return its hits."""
    hits = 0
    while hits < len(request) and request[hits] in cached:
        order.hit(cached[request[hits]])
        hits += 1
    key_of = {block: key for key, block in cached.items()}
    new = []
    for _ in request[hits:]:
        block = order.pop()
        cached.pop(key_of.get(block), None)
        new.append(block)
    for position in range(hits, len(request)):
        block, key = new[position - hits], request[position]
        order.cache(block, key, request[position - 1] if position else None, position)
        cached[key] = block
    order.release([cached[key] for key in reversed(request)])
    return hits


def node_of(order: GIX, cached: Cached, key: Hashable) -> GittinsNode:
    node = order._node_of[cached[key]]
    assert node is not None
    return node


def test_classes_are_hits_branch_and_half() -> None:
    """Worked by hand: a prompt of four blocks, a sibling below its second block, then the next turn of the first."""
    order = build(GIX, 20, epoch=1000)
    cached: Cached = {}

    def classes(*keys: str) -> list[int]:
        return [node_of(order, cached, key).reuse_class for key in keys]

    serve(order, cached, ["s", "t", "a", "b"])  # new at the root: hits 0, no branch, back half from block 2
    assert classes("s", "t", "a", "b") == [0, 0, 1, 1]
    serve(order, cached, ["s", "t", "c", "d"])  # below t, which has a child: born at a branch
    assert classes("s", "t", "c", "d") == [4, 4, 3, 3]
    serve(order, cached, ["s", "t", "a", "b", "e", "f"])  # below the leaf b: the next turn, not a branch
    assert classes("s", "t", "a", "b", "e", "f") == [8, 8, 4, 5, 1, 1]
    for _ in range(4):
        serve(order, cached, ["s"])
    assert classes("s") == [13]  # hits stay at 3; a request's only block is in its back half


def test_what_is_known_of_an_evicted_key_lives_on() -> None:
    order = build(GIX, 3, epoch=1000)
    cached: Cached = {}
    serve(order, cached, ["a", "b"])
    serve(order, cached, ["a", "b"])
    serve(order, cached, ["x", "y", "z"])  # evicts both
    assert "b" not in cached
    assert len(order._ghosts) == 2
    events = sum(order._events)
    serve(order, cached, ["a", "b"])
    assert sum(order._events) == events + 2  # a reuse of a ghost is an event
    assert [node_of(order, cached, key).hits for key in "ab"] == [2, 2]


def test_a_hit_in_use_is_no_event_and_a_pin_does_not_rejuvenate() -> None:
    order = build(GIX, 4, epoch=5)
    cached: Cached = {}
    serve(order, cached, ["a"])
    serve(order, cached, ["b"])
    node = node_of(order, cached, "a")
    order.hit(cached["a"])
    assert sum(order._events) == 1
    order.hit(cached["a"])  # a second request: not at risk
    assert sum(order._events) == 1
    assert node.hits == 2
    order.release([cached["a"]])
    epoch = node.epoch
    serve(order, cached, ["b"])
    serve(order, cached, ["b"])
    assert order._epoch > epoch
    order.pin(cached["a"])
    order.release([cached["a"]])
    assert node.epoch == epoch


def test_length_is_final_and_counts_in_each_group() -> None:
    """Two groups of unlike block size given back in one call: each block's half is that of its own group."""
    order = build(GIX, 8, epoch=1000)
    for block, (key, parent, position) in enumerate(
        [("a0", None, 0), ("a1", "a0", 1), ("a2", "a1", 2), ("a3", "a2", 3), ("b0", None, 0), ("b1", "b0", 1)]
    ):
        assert order.pop() == block
        order.cache(block, key, parent, position)
    order.release([3, 2, 1, 0, 5, 4])
    assert [node.reuse_class for node in order._node_of[:6] if node is not None] == [0, 0, 1, 1, 0, 1]


@LEARNED
def test_ghosts_reach_their_cap_and_stay_there(order_class: type[G]) -> None:
    order = build(order_class, 10)
    cached: Cached = {}
    for number in range(200):
        serve(order, cached, [number])
    assert len(order._ghosts) == GHOSTS_IN_CAPACITY * 10
    for number in range(200, 400):
        serve(order, cached, [number])
    assert len(order._ghosts) == GHOSTS_IN_CAPACITY * 10


@LEARNED
def test_no_verb_scans_the_pool(order_class: type[G]) -> None:
    """Steps of the costliest verb, the end of an epoch apart, and of that: the same at any size."""

    def costs(num_blocks: int) -> tuple[list[int], int]:
        order = order_class(num_blocks, 1)
        cached = {}
        for number in range(2 * num_blocks):  # full, with a ghost for every other block
            block = order.pop()
            order.cache(block, number, None, 0)
            order.release([block])
            cached[number] = block
        while order._accesses_left < 5:
            order.release([order.pop()])
            order.hit(block)
            order.release([block])
        verbs = [
            count_lines(lambda: order.pop()),
            count_lines(lambda: order.hit(block)),
            count_lines(lambda: order.release([block])),
        ]
        return verbs, count_lines(order._end_epoch)

    (small, small_epoch), (large, large_epoch) = costs(300), costs(12_000)
    assert max(small) < 150
    assert max(large) < 150
    assert large_epoch < 1.2 * small_epoch
