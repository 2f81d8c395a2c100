"""The workloads: the same for the same seed, endless, lazy, and of the kinds that they are named for."""

import random
from itertools import count, islice

import pytest

from engine_patches.orders import ORDERS
from router.sim.eviction.replay import Cache, replay
from router.sim.eviction.workload import ATTACKED_ORDER, WORKLOADS, Workload, adversary, anti, chat, cyclic, gsp, zipf
from router.sim.trace import Block, Request


def paths(name: str, requests: int, seed: int = 0, capacity: int = 50) -> list[list[Block]]:
    return [list(request.blocks) for request in Workload(name, requests, seed).open(capacity)]


@pytest.mark.parametrize("name", WORKLOADS)
def test_the_same_for_the_same_seed(name: str) -> None:
    assert paths(name, 300) == paths(name, 300)
    assert len(paths(name, 300)) == 300


@pytest.mark.parametrize("name", ["gsp", "zipf", "chat", "mix"])
def test_another_seed_is_another_workload(name: str) -> None:
    assert paths(name, 50, seed=0) != paths(name, 50, seed=1)


@pytest.mark.parametrize("name", WORKLOADS)
def test_every_block_has_one_parent(name: str) -> None:
    parents: dict[Block, Block | None] = {}
    for path in paths(name, 2000):
        assert len(set(path)) == len(path) > 0
        for block, parent in zip(path, [None, *path], strict=False):
            assert parents.setdefault(block, parent) == parent


@pytest.mark.parametrize("name", WORKLOADS)
def test_a_huge_one_begins_at_once(name: str) -> None:
    parts: list[float] = []
    stream = Workload(name, 10**12).open(1000, parts.append)
    assert next(stream).blocks
    assert parts == [0]


def test_gsp_is_128_groups_of_32_that_share_half() -> None:
    asked = list(islice(gsp(random.Random(3), count()), 4096))
    groups: dict[int, list[list[int]]] = {}
    for path in asked:
        groups.setdefault(path[0], []).append(path)
    assert len(groups) == 128
    for group in groups.values():
        half = len(group[0]) // 2
        assert len(group) == 32
        assert {tuple(path[:half]) for path in group} == {tuple(group[0][:half])}
        assert len({path[half] for path in group}) == 32
        assert {len(path) for path in group} <= {32, 64, 128, 256, 512}


def test_zipf_asks_for_the_first_groups_most() -> None:
    heads = [path[0] for path in islice(zipf(random.Random(3), count()), 4000)]
    shares = sorted((heads.count(head) / 4000 for head in set(heads)), reverse=True)
    harmonic = sum(1 / rank for rank in range(1, 513))
    for rank in (1, 2, 4, 10):
        assert shares[rank - 1] == pytest.approx(1 / (rank * harmonic), rel=0.3)


def test_a_turn_repeats_the_conversation() -> None:
    last: dict[int, list[int]] = {}
    turns: dict[int, int] = {}
    for path in islice(chat(random.Random(3), count()), 6000):
        start = path[0]
        before = last.get(start, [])
        assert path[: len(before)] == before
        assert len(path) > len(before)
        last[start] = path
        turns[start] = turns.get(start, 0) + 1
    assert 4 < 6000 / len(turns) < 5.5  # five, less those that go on behind the end
    assert sum(number == 1 for number in turns.values()) / len(turns) == pytest.approx(0.2, abs=0.04)


def test_cyclic_is_the_worst_case_of_lru() -> None:
    found = {
        name: replay(Cache(ORDERS[name](90, seed=0)), map(Request, islice(cyclic(count(), chains=10), 80))).hit_rate
        for name in ("lru", "rlt")
    }
    assert found["lru"] == 0
    assert found["rlt"] > 0.4


def test_anti_asks_for_every_chain_of_its_stream_twice() -> None:
    asked = [path[0] for path in islice(anti(count(), loops=2, apart=5, pairs=30), 2 * 1100 + 65)]
    loop, stream = asked[:2200], asked[2200:]
    assert loop[:1100] == loop[1100:]
    assert len(set(loop[:1100])) == 1100
    assert not set(loop) & set(stream)
    places = {head: [place for place, other in enumerate(stream) if other == head] for head in stream[:30]}
    assert {len(twice) for twice in places.values()} == {2}


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("capacity", [1, 7, 60])
def test_the_adversary_asks_for_what_was_just_evicted(order: str, capacity: int) -> None:
    cache = Cache(ORDERS[order](capacity, seed=0))
    evicted: list[Block] = []
    for path in islice(adversary(count(), capacity, order), 400):
        assert not evicted or evicted[-1] in path
        assert cache.serve(Request(path)) < len(path)
        evicted = list(cache.evicted)
    assert evicted


def test_the_adversary_harms_its_victim_alone() -> None:
    def hit_rate(name: str, seed: int) -> float:
        return replay(Cache(ORDERS[name](300, seed=seed)), Workload("adversary", 600).open(300)).hit_rate

    assert max(hit_rate(ATTACKED_ORDER, seed) for seed in (0, 1)) < hit_rate("rlt", 0) - 0.1
