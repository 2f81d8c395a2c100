"""Where theory puts the orders: loops just larger than the cache, the worst case of LRU (and of any order by age).

Against the clairvoyant optimum, marking pays at most 2 H_k on any fixed sequence (Fiat et al. 1991), and H_k on a loop
of k + 1 blocks, as one block is new in each phase; LRU misses every block, k times the optimum. `pytest -s` prints.
"""

from collections.abc import Sequence

import pytest

from engine_patches.orders import ORDERS
from router.sim.eviction.optimum import Optimum, next_uses
from router.sim.eviction.replay import Cache, PrefixCache, replay
from router.sim.trace import Request


def harmonic(k: int) -> float:
    return sum(1 / n for n in range(1, k + 1))


def loop(chains: int, length: int, rounds: int) -> list[Request]:
    paths = [tuple(range(chain * length, (chain + 1) * length)) for chain in range(chains)]
    return [Request(path) for _ in range(rounds) for path in paths]


def misses(server: PrefixCache, requests: Sequence[Request]) -> int:
    counted = replay(server, requests)
    return counted.accesses - counted.hits


def measure(capacity: int, length: int, rounds: int) -> tuple[dict[str, float], int]:
    """Misses of each order after the first round, over those of the optimum, for capacity / length + 1 chains."""
    requests = loop(capacity // length + 1, length, rounds)
    with next_uses(requests, capacity) as uses:
        best = misses(Optimum(capacity, uses), requests) - capacity - length
    ratios = {}
    for name in ("lru", "rlt", "rlt_gix"):
        runs = [misses(Cache(ORDERS[name](capacity, seed)), requests) - capacity - length for seed in range(3)]
        ratios[name] = sum(runs) / len(runs) / best
    text = ", ".join(f"{name} {ratio:.2f}" for name, ratio in ratios.items())
    print(f"k={capacity}, chains of {length}: times the optimum: {text}; H_k {harmonic(capacity // length):.2f}")
    return ratios, best


@pytest.mark.parametrize("capacity", [32, 128, 512])
def test_a_loop_of_one_block_more_than_the_cache(capacity: int) -> None:
    ratios, best = measure(capacity, 1, 40 if capacity > 100 else 200)
    assert ratios["lru"] == pytest.approx(capacity, rel=0.05)  # every single access
    assert ratios["rlt"] == pytest.approx(harmonic(capacity), rel=0.1)
    assert ratios["rlt_gix"] <= 1.05 * ratios["rlt"] + 3 * capacity / best


@pytest.mark.parametrize(("capacity", "length"), [(320, 10), (1000, 20)])
def test_a_loop_of_one_chain_more_than_the_cache(capacity: int, length: int) -> None:
    """Chains lose their tails: the loop costs the optimum one chain a round, and marking about H of the chains."""
    ratios, best = measure(capacity, length, 60)
    assert ratios["lru"] > 0.9 * capacity / length
    assert 1 < ratios["rlt"] < 2 * harmonic(capacity)
    assert ratios["rlt_gix"] <= 1.05 * ratios["rlt"] + 3 * capacity / best


@pytest.mark.parametrize("length", [1, 10])
def test_lru_hits_nothing_in_a_loop(length: int) -> None:
    requests = loop(400 // length + 1, length, 20)
    rates = {
        name: sum(replay(Cache(ORDERS[name](400, seed)), requests).hit_rate for seed in range(3)) / 3
        for name in ("lru", "rlt", "rlt_gix")
    }
    print(f"loop of chains of {length}: hit rates {rates}")
    assert rates["lru"] == 0
    assert rates["rlt"] > 0.8
    assert rates["rlt_gix"] > 0.8
