import logging
import socket
from collections.abc import Sequence
from typing import Any

import pytest

from engine_patches.errors import HostError, SettingError
from engine_patches.host_interface import Host
from engine_patches.plugin import register
from tests.support.fake_host import BlockPool, KVCacheBlock, build_host

RLT = {"LEAFCUTTER_EVICTION": "rlt"}


def build_pool(host: Host, num_gpu_blocks: int = 9) -> Any:
    return host.coordinator.BlockPool(num_gpu_blocks, enable_caching=True, hash_block_size=16)


@pytest.mark.parametrize("environ", [{}, {"LEAFCUTTER_EVICTION": ""}, {"LEAFCUTTER_EVICTION": "off"}])
def test_off_unless_asked_even_on_an_unknown_host(environ: dict[str, str]) -> None:
    host = build_host("9.9")
    register(environ, host)
    assert host.coordinator.BlockPool is BlockPool


@pytest.mark.parametrize("order", ["lru", "rlt"])
def test_puts_the_order_in_place_and_says_so(order: str, caplog: pytest.LogCaptureFixture) -> None:
    host = build_host()
    register({"LEAFCUTTER_EVICTION": order}, host)
    with caplog.at_level(logging.INFO):
        pool = build_pool(host)
    assert pool.order.name == order
    assert pool.order.free == pool.free_block_queue.num_free_blocks == 8
    assert f"eviction order {order} over 8 blocks" in caplog.text


def test_registers_twice_without_harm() -> None:
    host = build_host()
    register(RLT, host)
    first = host.coordinator.BlockPool
    register(RLT, host)
    assert host.coordinator.BlockPool is first
    assert first.__bases__ == (BlockPool,)
    assert host.block_pool.BlockPool is BlockPool


def test_refuses_another_order_in_the_same_process() -> None:
    host = build_host()
    register(RLT, host)
    with pytest.raises(HostError, match="LEAFCUTTER_EVICTION is lru"):
        register({"LEAFCUTTER_EVICTION": "lru"}, host)


def test_refuses_an_unknown_order() -> None:
    host = build_host()
    with pytest.raises(SettingError, match=r"LEAFCUTTER_EVICTION='mru': expected one of off, lru, rlt"):
        register({"LEAFCUTTER_EVICTION": "mru"}, host)
    assert host.coordinator.BlockPool is BlockPool


def test_refuses_another_version_and_leaves_the_host_alone() -> None:
    host = build_host("0.34.0")
    with pytest.raises(HostError, match=r"does not fit this vLLM: vLLM is version 0\.34\.0"):
        register(RLT, host)
    assert host.coordinator.BlockPool is BlockPool


def test_refuses_a_changed_interface_with_a_sentence() -> None:
    class Changed(BlockPool):
        def free_blocks(self, chain: Sequence[KVCacheBlock]) -> None: ...

    host = build_host(pool=Changed)
    with pytest.raises(HostError, match=r"free_blocks takes \(chain\), expected \(ordered_blocks\) first"):
        register(RLT, host)
    assert host.coordinator.BlockPool is Changed


def test_refuses_a_null_block_that_is_not_block_0() -> None:
    class Odd(BlockPool):
        def __init__(self, num_gpu_blocks: int, enable_caching: bool, hash_block_size: int) -> None:
            super().__init__(num_gpu_blocks, enable_caching, hash_block_size)
            self.null_block = self.blocks[3]

    host = build_host(pool=Odd)
    register(RLT, host)
    with pytest.raises(HostError, match="the null block is block 3, expected 0"):
        build_pool(host)


def test_a_seed_fixes_the_random_choices() -> None:
    def victims(seed: str) -> list[int]:
        host = build_host()
        register({**RLT, "LEAFCUTTER_EVICTION_SEED": seed}, host)
        order = build_pool(host, 40).order
        for block in range(1, 40):
            assert order.pop() == block
            order.cache(block, block, None, 0)
        order.release(range(1, 40))
        return [order.pop() for _ in range(39)]

    assert victims("5") == victims("5") != victims("6")


def test_a_taken_port_stops_the_engine() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        host = build_host()
        register({**RLT, "LEAFCUTTER_STATE_PORT": str(port)}, host)
        with pytest.raises(SettingError, match=f"LEAFCUTTER_STATE_PORT: cannot listen on 127.0.0.1:{port}"):
            build_pool(host)


def test_fits_into_the_installed_vllm(unpatched: Host) -> None:
    register(RLT, unpatched)
    pool = unpatched.coordinator.BlockPool(num_gpu_blocks=5, enable_caching=True, hash_block_size=16)
    assert isinstance(pool, unpatched.block_pool.BlockPool)
    assert pool.order.name == "rlt"
