"""GIX's books against the definitions, recomputed from what the toy engine did."""

import random
from collections import Counter
from collections.abc import Hashable, Sequence
from typing import Any, TypeVar

import pytest

from engine_patches.orders import GIX, RLTGIX
from engine_patches.orders.gix import (
    CLASSES,
    GHOSTS_IN_CAPACITY,
    KINDS,
    NO_RANK,
    NO_USE,
    SLOTS,
    GittinsNode,
    GittinsOrder,
)
from engine_patches.orders.structures.hazard import BIN_OF_AGE, HORIZON
from engine_patches.orders.structures.sessions import RETURN_CLASSES
from tests.support.toy_engine import ToyEngine, count_lines

LEARNED = pytest.mark.parametrize("order_class", [GIX, RLTGIX], ids=["gix", "rlt_gix"])
G = TypeVar("G", bound=GittinsOrder[Any])
Cached = dict[Hashable, int]  # the block of each cached key


def build(order_class: type[G], num_blocks: int, seed: int = 0, *, epoch: int = 20) -> G:
    """An order with epochs of `epoch` accesses: short, so that small runs pass the horizon."""
    order = order_class(num_blocks, seed)
    order._epoch_length = order._accesses_left = order._hazards._epoch_length = epoch
    return order


def class_of(node: GittinsNode) -> int:
    return node.use.first_class + node.kind


def check(order: GittinsOrder[Any], engine: ToyEngine[Any]) -> None:
    """Every count from its definition: what is at risk, which bucket each leaf is in, and that no other is filled."""
    nodes = {node for node in order._node_of if node is not None}
    free = [node for node in nodes if node.free]
    at_risk = Counter((class_of(node), node.use.epoch) for node in free if order._epoch - node.use.epoch < HORIZON)
    for entry in order._ghosts._entries.values():
        reuse_class, epoch = entry >> 4 & 255, (entry & (1 << 48) - 1) >> 12
        if order._epoch - epoch < HORIZON:
            at_risk[reuse_class, epoch] += 1
    assert sum(sum(kinds) for groups in order._at_risk for kinds in groups) == sum(at_risk.values())
    for (reuse_class, epoch), count in at_risk.items():
        assert order._at_risk[epoch % HORIZON][reuse_class // KINDS][reuse_class % KINDS] == count
    parents = {node.parent for node in free}
    leaves = {node for node in free if node not in parents}
    found = set()
    for reuse_class in range(CLASSES):
        group, kind = divmod(reuse_class, KINDS)
        filled = {}
        for slot, cohorts in enumerate(order._cohorts):
            if cohorts:
                cohort = cohorts[group]
                assert cohort.epoch % HORIZON == slot
                assert 0 <= order._epoch - cohort.epoch < HORIZON
                assert cohort.at_risk is order._at_risk[slot][group]
                filled[cohort.epoch] = cohort.buckets[kind]
        assert all(order._ancient[reuse_class].values())
        assert not set(filled) & set(order._ancient[reuse_class])
        filled |= order._ancient[reuse_class]
        for epoch, bucket in filled.items():
            for place, node in enumerate(bucket):
                assert node.leaf_index == place
                assert (class_of(node), node.use.epoch) == (reuse_class, epoch)
                found.add(node)
            if bucket:
                assert order._places[reuse_class] >> max(0, HORIZON - order._epoch + epoch) & 1
    assert found == leaves
    for reuse_class, rank in enumerate(order._ranks):
        ranks = [
            (order._hazards.levels(reuse_class)[BIN_OF_AGE[min(HORIZON - place, HORIZON - 1)]], place, reuse_class)
            for place in range(SLOTS)
            if order._places[reuse_class] >> place & 1
        ]
        lowest = (rank // CLASSES // SLOTS, rank // CLASSES % SLOTS, rank % CLASSES)
        assert lowest == min(ranks) if ranks else rank == NO_RANK
    assert order._first_rank == min(order._ranks)
    assert NO_USE not in {node.use for node in nodes}
    for use in {node.use for node in free if node.use.leaves is not None}:
        assert use.leaves is not None
        assert set(use.leaves) == {node for node in leaves if node.use is use}
        assert use.counts == [sum(node.use is use and node.kind == kind for node in free) for kind in range(KINDS)]
    assert all(0 <= node.hits <= 3 for node in nodes)
    in_use = {node for node in nodes if not node.free and node.key is not None}
    assert {node.key for node in in_use} == {
        engine.key_of[b] for b in range(engine.num_blocks) if engine.refs[b] and b in engine.key_of
    }


@LEARNED
@pytest.mark.parametrize("windowed", [False, True])
@pytest.mark.parametrize("sessions", [False, True])
@pytest.mark.parametrize("seed", range(2))
def test_books_agree_with_the_definitions(order_class: type[G], seed: int, windowed: bool, sessions: bool) -> None:
    order = build(order_class, 30, seed)
    engine = ToyEngine(order, 30, seed, windowed=windowed)
    chance = random.Random(seed)
    for step in range(2500):
        engine.step(rough=True)
        if sessions:
            used = [block for block in engine.key_of if engine.refs[block]]
            if used:
                order.assign(chance.choice(used), chance.randrange(8), step / 3)
            order.expect(chance.randrange(10), chance.choice([None, 0.0, chance.expovariate(0.01)]))
        if step % 29 == 0:
            check(order, engine)
    assert (order.hints > 1000) == sessions
    assert order._epoch > HORIZON + 10
    assert order.evictions > 300
    assert sum(order._events) > 10


def serve(
    order: GittinsOrder[Any], cached: Cached, request: Sequence[Hashable], session: str | None = None, now: float = 0.0
) -> int:
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
    if session is not None:
        order.assign(cached[request[-1]], session, now)
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
        return [node_of(order, cached, key).kind for key in keys]

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
    epoch = node.use.epoch
    serve(order, cached, ["b"])
    serve(order, cached, ["b"])
    assert order._epoch > epoch
    order.pin(cached["a"])
    order.release([cached["a"]])
    assert node.use.epoch == epoch


def test_length_is_final_and_counts_in_each_group() -> None:
    """Two groups of unlike block size given back in one call: each block's half is that of its own group."""
    order = build(GIX, 8, epoch=1000)
    for block, (key, parent, position) in enumerate(
        [("a0", None, 0), ("a1", "a0", 1), ("a2", "a1", 2), ("a3", "a2", 3), ("b0", None, 0), ("b1", "b0", 1)]
    ):
        assert order.pop() == block
        order.cache(block, key, parent, position)
    order.release([3, 2, 1, 0, 5, 4])
    assert [node.kind for node in order._node_of[:6] if node is not None] == [0, 0, 1, 1, 0, 1]


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
    # The first leaf of a class in an epoch asks for what the class is worth.
    assert max(small) < 300
    assert max(large) < 300
    assert large_epoch < 1.2 * small_epoch


def test_a_hint_moves_all_that_a_session_left_behind_and_nothing_else() -> None:
    order = build(GIX, 20, epoch=1000)
    cached: Cached = {}

    def return_classes(*keys: str) -> list[int]:
        return [class_of(node_of(order, cached, key)) // KINDS for key in keys]

    serve(order, cached, ["s", "a", "b"], "one", 1.0)
    serve(order, cached, ["s", "c"], "two", 2.0)
    assert return_classes("s", "a", "b", "c") == [0, 0, 0, 0]
    order.expect("one", 15.0)
    order.expect("two", None)
    order.expect("three", 1.0)
    assert return_classes("s", "a", "b", "c") == [RETURN_CLASSES - 1, 2, 2, RETURN_CLASSES - 1]
    assert order.hints == 2
    order.expect("one", 15.0)
    assert return_classes("a", "b") == [2, 2]


def test_a_hint_comes_too_late_for_blocks_past_the_horizon() -> None:
    order = build(GIX, 20, epoch=5)
    cached: Cached = {}
    serve(order, cached, ["a"], "one", 1.0)
    while order._epoch < HORIZON - 1:
        serve(order, cached, ["b"])
    order.expect("one", 15.0)
    assert class_of(node_of(order, cached, "a")) // KINDS == 2
    while order._epoch < HORIZON:
        serve(order, cached, ["b"])
    order.expect("one", 100.0)
    assert class_of(node_of(order, cached, "a")) // KINDS == 2


def test_a_hint_that_comes_while_its_session_runs_is_for_the_blocks_that_it_gives_back() -> None:
    order = build(GIX, 20, epoch=1000)
    cached: Cached = {}
    serve(order, cached, ["a"], "one", 1.0)
    order.hit(cached["a"])
    order.assign(cached["a"], "one", 5.0)
    order.expect("one", 100.0)
    order.release([cached["a"]])
    assert class_of(node_of(order, cached, "a")) // KINDS == 6
    order.hit(cached["a"])  # without a session: the hint is used up, and the block says who used it last
    order.release([cached["a"]])
    assert class_of(node_of(order, cached, "a")) // KINDS == 1  # by the gap of 4 s between its own requests


def test_without_hints_sessions_are_learned_from_their_own_gaps() -> None:
    order = build(GIX, 20, epoch=1000)
    cached: Cached = {}
    for number in range(9):
        serve(order, cached, ["a"], "fast", 2.0 * number)
        serve(order, cached, ["b"], "slow", 400.0 * number)
    fast, slow = (class_of(node_of(order, cached, key)) // KINDS for key in "ab")
    assert fast == 1
    assert slow >= 6


def test_who_returns_soon_stays_in_the_cache() -> None:
    """Six sessions in turn, and one in each round of eight that come rarely: who is told which those are keeps the
    others."""
    rates = {}
    for told in (False, True):
        order = build(GIX, 40, 1, epoch=50)
        cached: Cached = {}
        hits = accesses = 0
        for turn in range(400):
            for session in range(14):
                if session >= 6 and turn % 10 != session:
                    continue
                request = [(session, place) for place in range(5)]
                name = str(session)
                accesses += 5
                hits += sum(key in cached for key in request)
                serve(order, cached, request, name if told else None, 10.0 * turn)
                if told:
                    order.expect(name, 10.0 if session < 6 else 100.0)
        rates[told] = hits / accesses
    assert rates[True] > rates[False] + 0.02
