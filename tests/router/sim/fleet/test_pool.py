"""The cache of a simulated engine."""

import random
from collections.abc import Sequence

import pytest

from engine_patches.orders import ORDERS
from router.sim.fleet.pool import BlockPool
from router.types import BlockKey

LRU = ORDERS["lru"]


def keys_of(*numbers: int) -> list[BlockKey]:
    return [BlockKey(number) for number in numbers]


def fill(pool: BlockPool, keys: Sequence[BlockKey]) -> list[int]:
    """A request over `keys` from admission to its last token: its blocks."""
    hits = pool.find(keys, len(keys))
    pool.use(hits)
    blocks = hits + pool.allocate(len(keys) - len(hits))
    pool.cache(blocks, keys, len(hits), len(keys))
    return blocks


def test_a_prefix_is_found_again() -> None:
    pool = BlockPool(LRU(10))
    blocks = fill(pool, keys_of(1, 2, 3))
    assert pool.free == 7
    assert pool.free_besides(blocks[:2]) == 7
    pool.release(blocks[::-1])
    assert pool.free == 10
    assert pool.find(keys_of(1, 2, 9), 3) == blocks[:2]
    assert pool.find(keys_of(1, 2, 3), 2) == blocks[:2]
    assert pool.free_besides(blocks[:2]) == 8


def test_the_deepest_block_goes_first() -> None:
    pool = BlockPool(LRU(3))
    pool.release(fill(pool, keys_of(1, 2, 3))[::-1])
    pool.allocate(1)
    assert len(pool.find(keys_of(1, 2, 3), 3)) == 2


def test_shared_blocks_stay_until_the_last_request_is_over() -> None:
    pool = BlockPool(LRU(4))
    first, second = fill(pool, keys_of(1, 2)), fill(pool, keys_of(1, 3))
    assert first[0] == second[0]
    pool.release(first[::-1])
    assert pool.free == 2
    pool.release(second[::-1])
    assert pool.free == 4


def test_two_requests_that_compute_one_prefix_keep_their_copies() -> None:
    pool = BlockPool(LRU(4))
    one, two = pool.allocate(1), pool.allocate(1)
    pool.cache(one, keys_of(1), 0, 1)
    pool.cache(two, keys_of(1), 0, 1)
    assert pool.find(keys_of(1), 1) == one
    pool.release(one)
    pool.allocate(3)  # the two that were never used, and `one`
    assert pool.find(keys_of(1), 1) == two
    with pytest.raises(IndexError):
        pool.allocate(1)


@pytest.mark.parametrize("order", ORDERS)
def test_no_block_is_lost(order: str) -> None:
    rng = random.Random(3)
    pool = BlockPool(ORDERS[order](40, seed=1))
    running: list[list[int]] = []
    for _ in range(1500):
        if running and (rng.random() < 0.5 or pool.free < 8):
            pool.release(running.pop(rng.randrange(len(running)))[::-1])
        else:
            group = rng.randrange(6)
            shared, own = range(100 * group, 100 * group + 4), [rng.randrange(10**6, 10**9) for _ in range(3)]
            running.append(fill(pool, keys_of(*shared, *own)))
        in_use = {block for blocks in running for block in blocks}
        assert pool.free == 40 - len(in_use)
        assert [block for block, users in enumerate(pool._users) if users] == sorted(in_use)
    for key, block in pool._block_of.items():
        assert pool._key_of[block] == key
