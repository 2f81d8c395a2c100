"""The guard: its shadow against the definitions, and the bound against an adversary, at every step."""

import random
from collections.abc import Iterator, Sequence

import pytest

from engine_patches.orders import ORDERS, RLT, RLTGIX, EvictionOrder
from engine_patches.orders.rlt_gix import EPSILON, GuardedNode
from router.sim.eviction.replay import Cache, replay
from router.sim.hints import ALONE, Hints
from router.sim.trace import Request
from tests.engine_patches.orders.test_gix import build
from tests.support.toy_engine import ToyEngine


def check_shadow(order: RLTGIX, *, whole_prefixes: bool) -> None:
    nodes = {node for node in order._node_of if node is not None and node.key is not None}
    held = {node for node in order._shadow._nodes.values() if node.block >= 0}
    in_use = {node for node in nodes if not node.free}
    assert order._shadow.num_keys == len(held)
    assert order._shadow.num_in_use == len(in_use)
    assert all(node.shadow_node in held and not node.shadow_node.free for node in in_use)
    assert {node for node in held if not node.free} == {node.shadow_node for node in in_use}
    assert all(
        shadow_node.guarded_node is None or shadow_node.guarded_node.shadow_node is shadow_node for shadow_node in held
    )
    assert {node.key for node in nodes if node.shadow_node is not None} == {node.key for node in nodes} & {
        t.key for t in held
    }
    standing = [*order._shadow._unmarked, *order._shadow._marked]
    parents = {node.parent for node in held if node.free}
    assert set(standing) == {node for node in held if node.free and node not in parents}
    assert len(standing) == len(set(standing))
    assert len(order._shadow._nodes) <= 2 * order._size
    assert all(node.outside_index == place for place, node in enumerate(order._outside))
    if whole_prefixes:
        assert len(held) <= order._size
        # The toy engine's keys are tuples, one longer than their parent's.
        assert all((isinstance(node.key, tuple) and len(node.key) == 1) or node.parent in held for node in held)
        assert set(order._outside) == {node for node in nodes if node.leaf_index >= 0 and node.shadow_node is None}


@pytest.mark.parametrize("budget", [None, 0.0], ids=["quiet", "at once"])
@pytest.mark.parametrize("windowed", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_the_shadow_pins_and_holds_what_it_should(seed: int, windowed: bool, budget: float | None) -> None:
    order = build(RLTGIX, 30, seed)
    if budget is not None:
        order._budget = budget
    release = order.release

    def watched(blocks: Sequence[int]) -> None:
        release(blocks)
        assert order._shadow.num_keys - order._shadow.num_in_use <= order.free

    order.release = watched  # type: ignore[method-assign]
    engine = ToyEngine(order, 30, seed, windowed=windowed)
    for step in range(2500):
        engine.step(rough=windowed)
        if step % 5 == 0:
            check_shadow(order, whole_prefixes=not windowed)
    assert order.shadow_misses > 300
    assert order.phases > 3
    assert order.misses > 300
    if budget == 0:
        assert order.fallbacks > 3


def test_in_charge_the_guard_evicts_what_the_shadow_does_not_hold() -> None:
    """Steps 2 and 3 of the proof: the victim is outside S, and |S \\ A| falls by one with each miss of ours alone."""
    order = build(RLTGIX, 40, 1)
    order._budget = 0.0
    engine = ToyEngine(order, 40, 1)
    guarded = 0
    draw = order._choose_victim

    def watched() -> GuardedNode:
        nonlocal guarded
        node = draw()
        if order.fallback:
            assert node.key is None or node.shadow_node is None
            guarded += 1
        return node

    order._choose_victim = watched  # type: ignore[method-assign]
    for _ in range(4000):
        engine.step(rough=False)
    assert guarded > 100


class DriftingTree:
    """Requests over random paths of a tree whose popularity drifts: chance, but the same for every order."""

    def __init__(self, seed: int, requests: int) -> None:
        self.random = random.Random(seed)
        self.requests = requests

    def __iter__(self) -> Iterator[Request]:
        for number in range(self.requests):
            hot = number // 500
            root = (hot + int(self.random.expovariate(0.4))) % 40
            path = [root]
            for _ in range(self.random.randint(2, 9)):
                path.append(10 * path[-1] + 1 + min(2, int(self.random.expovariate(1))))
            yield Request(tuple(path))


def test_the_shadow_misses_what_rlt_misses() -> None:
    """The same requests, the shadow of a guarded order against the order `rlt` itself: ten seeds each, means."""
    ours, theirs = [], []
    for seed in range(10):
        server = Cache(RLTGIX(120, seed))
        counted = replay(server, DriftingTree(3, 3000))
        ours.append(server.order.shadow_misses)
        theirs.append(counted.accesses - replay(Cache(RLT(120, 100 + seed)), DriftingTree(3, 3000)).hits)
    spread = max(theirs) - min(theirs)
    assert spread < 0.05 * min(theirs)
    assert abs(sum(ours) - sum(theirs)) / 10 < spread / 2


def attack(
    order: EvictionOrder, *, chains: int, length: int, requests: int, hostile_hints: bool = False
) -> Iterator[tuple[tuple[int, ...], int]]:
    """An adaptive adversary: it requests the whole chain of the block evicted last. Yields requests and their hits.

    With hostile hints each chain is a session, and the adversary says of the one that it asks for next that it will
    never return, and of those that it has just asked for that they return at once.
    """
    server = Cache(order, Hints(ALONE, 0))
    last = 0
    for number in range(requests):
        chain = last // length if server.evicted or number >= chains else number
        path = tuple(range(chain * length, (chain + 1) * length))
        session = str(path[0]) if hostile_hints else None
        hits = server.serve(Request(path, arrival_s=float(number), session=session))
        if server.evicted:
            block = server.evicted[-1]
            assert isinstance(block, int)
            last = block
        if session is not None:
            order.expect(session, 1.0)
            order.expect(str(last // length * length), None)
            order.expect(str(path[0] + length), None)
        yield path, hits


@pytest.mark.parametrize("hostile_hints", [False, True])
@pytest.mark.parametrize(("chains", "length"), [(110, 10), (1050, 1), (60, 20)])
def test_the_bound_holds_at_every_step_and_on_every_interval(chains: int, length: int, hostile_hints: bool) -> None:
    """C <= (1 + eps) C_RLT + 2 B + n + L between any two moments, against an adversary that sees every eviction, and
    that says of sessions what it likes."""
    capacity, requests = 1000, 4000 if length > 1 else 20_000
    order = RLTGIX(capacity, 0)
    paths, hits = [], 0
    lowest = worst = 0.0
    for path, found in attack(order, chains=chains, length=length, requests=requests, hostile_hints=hostile_hints):
        excess = order.misses - (1 + EPSILON) * order.shadow_misses
        lowest = min(lowest, excess)
        worst = max(worst, excess - lowest)
        assert worst <= 2 * order._budget + capacity + length
        paths.append(Request(path))
        hits += found
    assert order.fallbacks > 0
    assert (order.hints > requests) == hostile_hints
    accesses = length * requests
    rate = replay(Cache(RLT(capacity, 5)), paths).hit_rate
    print(f"guarded {hits / accesses:.3f}, rlt on the same requests {rate:.3f}, worst excess {worst:.0f}")
    # Within the bound of RLT's own result on these very requests: (1 + eps) of its misses and a constant.
    assert accesses - hits <= (1 + EPSILON) * order.shadow_misses + 2.5 * capacity + length


def test_unguarded_the_adversary_wins() -> None:
    """What the guard is for: the same adversary against `gix` alone; its requests are easy for `rlt`."""
    paths, hits = [], 0
    for path, found in attack(ORDERS["gix"](1000, 0), chains=1050, length=1, requests=20_000):
        paths.append(Request(path))
        hits += found
    assert hits / len(paths) < 0.01
    assert replay(Cache(RLT(1000, 5)), paths).hit_rate > 0.9


def test_a_voided_key_goes_in_both() -> None:
    order = RLTGIX(4, 0)
    for position, key in enumerate(["a", "ab"]):
        assert order.pop() == position
        order.cache(position, key, key[:-1] or None, position)
    order.release([1, 0])
    order.uncache(1)
    assert (order._shadow.num_keys, order._shadow.num_in_use) == (1, 0)
    order.hit(0)
    order.uncache(0)  # in use
    assert (order._shadow.num_keys, order._shadow.num_in_use) == (0, 0)
    order.discard([0])
    order.clear()
    assert order._shadow.num_keys == order.marked == 0


def test_the_guard_stays_quiet_where_the_learned_order_is_better() -> None:
    order = RLTGIX(300, 0)
    replay(Cache(order), DriftingTree(1, 6000))
    assert order.debt == -order._budget
    assert order.fallbacks == 0


def test_keys_whose_parents_go_in_a_circle_stop_nothing() -> None:
    """No prefix hash does that; an engine must not fall over it all the same."""
    order = RLTGIX(4, 0)
    chance = random.Random(1)
    cached: dict[int, str] = {}
    for _ in range(500):
        path = chance.sample("abcdef", 3)
        block_of = {key: block for block, key in cached.items()}
        blocks = []
        for key in path:
            if key not in block_of:
                break
            order.hit(block_of[key])
            blocks.append(block_of[key])
        for position in range(len(blocks), 3):
            if not order.free:
                break
            try:
                block = order.pop()
            except IndexError:
                break
            cached.pop(block, None)
            order.cache(block, path[position], path[position - 1] if position else None, position)
            cached[block] = path[position]
            blocks.append(block)
        order.release(blocks[::-1])
    assert order.evictions > 100
