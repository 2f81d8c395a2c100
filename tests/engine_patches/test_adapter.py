"""The adapter in vLLM's real block pool, under its real cache manager."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest

from engine_patches.host_interface import Host
from engine_patches.orders import ORDERS
from engine_patches.orders.gix import KINDS
from engine_patches.orders.structures.sessions import RETURN_CLASSES
from engine_patches.plugin import register

if TYPE_CHECKING:
    from tests.support.host_traffic import Traffic  # imports vLLM

NUM_BLOCKS = 40
STEPS = 1200

MODELS = [
    "full",
    "full and two windows",
    "full and window",
    "coarse full and window",
    "full and state",
    "coarse full and state",
]


def start(host: Host, order: str | None, model: str, seed: int, *, caching: bool = True) -> Traffic:
    """Traffic over a pool with that order, or with vLLM's own queue for None."""
    from tests.support.host_traffic import Traffic

    own = host.coordinator.BlockPool
    if order is not None:
        register({"LEAFCUTTER_EVICTION": order, "LEAFCUTTER_EVICTION_SEED": str(seed)}, host)
    try:
        return Traffic(model, NUM_BLOCKS, seed, caching=caching)
    finally:
        host.coordinator.BlockPool = own  # type: ignore[attr-defined]  # of a module that mypy does not read


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("model", MODELS)
def test_lru_is_the_hosts_own_queue_step_for_step(host: Host, model: str, seed: int) -> None:
    stock, ours = start(host, None, model, seed), start(host, "lru", model, seed)
    assert type(stock.pool) is not type(ours.pool)
    for _ in range(STEPS):
        stock.step()
        ours.step()
        assert ours.log[-1] == stock.log[-1]
    hit = sum(bool(done[0]) for done, *_ in stock.log if isinstance(done, tuple) and isinstance(done[0], int))
    assert hit > 5  # the run was worth comparing
    assert ours.pool.order.evictions > 20
    assert any(events for *_, events, _ in stock.log)
    assert any(copies for _, copies, *_ in stock.log) == (model == "coarse full and state")


def test_lru_is_the_hosts_own_queue_without_prefix_caching(host: Host) -> None:
    stock, ours = (start(host, order, "full", 1, caching=False) for order in (None, "lru"))
    for _ in range(STEPS):
        stock.step()
        ours.step()
        assert ours.log[-1] == stock.log[-1]


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("name", sorted(ORDERS))
def test_no_order_loses_a_block_or_evicts_one_in_use(host: Host, name: str, model: str) -> None:
    traffic = start(host, name, model, 1)
    pool, order = traffic.pool, traffic.pool.order
    for _ in range(STEPS):
        traffic.step()
        free = {block.block_id for block in pool.blocks[1:] if block.ref_cnt == 0}
        assert set(traffic.log[-1][2]) == free
        assert pool.get_num_free_blocks() == order.free == len(free)
        assert order.cached == sum(block.block_hash is not None for block in pool.blocks)
    assert order.evictions > 20
    assert order.hits > 20
    assert order.misses > 20
    traffic.reset()
    assert pool.get_num_free_blocks() == NUM_BLOCKS - 1
    assert sorted(block.block_id for block in pool.get_new_blocks(NUM_BLOCKS - 1)) == [*range(1, NUM_BLOCKS)]


def test_rlt_without_prefix_caching_is_a_stack_of_blocks(host: Host) -> None:
    traffic = start(host, "rlt", "full", 1, caching=False)
    for _ in range(STEPS):
        traffic.step()
    assert traffic.pool.order.cached == traffic.pool.order.phases == 0


def test_rlt_evicts_no_block_whose_child_is_cached(host: Host) -> None:
    """In a full-attention group, with requests only: the key of an evicted block is nobody's parent."""
    traffic = start(host, "rlt", "full", 5)
    parent_of: dict[Any, Any] = {}
    for _ in range(STEPS):
        draw = traffic.random.random()
        if draw < 0.5:
            traffic.admit()
        elif draw < 0.8:
            traffic.decode()
        else:
            traffic.finish()
        cached = {block.block_hash for block in traffic.pool.blocks if block.block_hash is not None}
        for request in traffic.running:
            (blocks,) = traffic.manager.get_blocks(request.request_id).blocks
            for before, block in pairwise(blocks):
                if block.block_hash is not None:
                    parent_of[block.block_hash] = before.block_hash
        assert not [key for key in cached if key in parent_of and parent_of[key] not in cached]
    assert traffic.pool.order.evictions > 50


def test_the_first_block_is_the_null_block(host: Host) -> None:
    pool = start(host, "rlt", "full", 0).pool
    assert pool.null_block.block_id == 0
    assert pool.get_num_free_blocks() == NUM_BLOCKS - 1


def test_a_pin_is_not_a_hit(host: Host) -> None:
    traffic = start(host, "rlt", "full", 3)
    while not traffic.admit():
        pass
    request = traffic.running[0]
    (blocks,) = traffic.manager.get_blocks(request.request_id).blocks
    cached = [block for block in blocks if block.block_hash is not None]
    traffic.free(request)
    order = traffic.pool.order
    before = order.hits
    traffic.pool.touch(cached)  # as an offload manager does
    assert order.hits == before
    traffic.pool.free_blocks(reversed(cached))
    found = traffic.pool.get_cached_block(cached[0].block_hash[:-4], [0])
    traffic.pool.touch(found)
    assert order.hits == before + 1


def test_an_empty_queue_says_so(host: Host) -> None:
    queue = start(host, "lru", "full", 0).pool.free_block_queue
    queue.popleft_n(NUM_BLOCKS - 1)
    with pytest.raises(ValueError, match="no free blocks"):
        queue.popleft()
    queue.append(queue._blocks[7])
    assert queue.popleft().block_id == 7


@pytest.mark.parametrize("way", ["session_id", "vllm_xargs"])
def test_the_session_of_a_request_reaches_the_order(host: Host, way: str) -> None:
    """By `vllm_xargs` in every version; by a field of its own where the request has one."""
    from inspect import signature

    from vllm.sampling_params import SamplingParams
    from vllm.v1.request import Request

    has_field = "session_id" in signature(Request).parameters
    if way == "session_id" and not has_field:
        assert host.version.startswith("0.26")
        return
    traffic = start(host, "gix", "full", 1)
    params = SamplingParams(max_tokens=8, extra_args={"session_id": "me"} if way == "vllm_xargs" else None)
    params.update_from_generation_config({}, eos_token_id=99_999)
    named: Any = {"session_id": "me"} if way == "session_id" else {}
    request = Request("1", [*range(40)], params, None, arrival_time=5.0, block_hasher=traffic.hasher, **named)
    blocks, num_computed, _ = traffic.manager.get_computed_blocks(request)
    assert traffic.manager.allocate_slots(request, 40 - num_computed, num_computed, blocks) is not None
    order = traffic.pool.order
    order.expect("me", 15.0)
    traffic.manager.free(request)
    assert order.hints == 1
    uses = {node.use for node in order._node_of if node is not None and node.free}
    assert [use.first_class // KINDS for use in uses] == [2]
    traffic.pool.hints.append(("me", None))
    traffic.pool.get_new_blocks(1)
    assert [use.first_class // KINDS for use in uses] == [RETURN_CLASSES - 1]
