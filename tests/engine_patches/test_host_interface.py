from collections.abc import Sequence
from typing import Any

import pytest

from engine_patches.adapter import OrderQueue
from engine_patches.host_interface import QUEUE_METHODS, Host, find_differences
from tests.support.fake_host import BlockPool, FreeKVCacheBlockQueue, KVCacheBlock, build_host


def test_the_installed_vllm_fits(host: Host) -> None:
    assert find_differences(host) == []


@pytest.mark.parametrize("version", ["0.26.0", "0.32.0+cpu", "0.33.1rc2"])
def test_supported_versions_fit(version: str) -> None:
    assert find_differences(build_host(version)) == []


@pytest.mark.parametrize("version", ["0.25.9", "0.34.0", "1.0.0", "dev", ""])
def test_other_versions_do_not(version: str) -> None:
    assert find_differences(build_host(version)) == [f"vLLM is version {version}, supported is >=0.26,<0.34"]


def test_our_queue_has_what_we_expect_of_the_hosts() -> None:
    assert all(callable(getattr(OrderQueue, name)) for name in QUEUE_METHODS)


def test_a_changed_signature_is_named() -> None:
    class Changed(BlockPool):
        def touch(self, pages: Sequence[KVCacheBlock]) -> None: ...

    (difference,) = find_differences(build_host(pool=Changed))
    assert difference == "Changed.touch takes (pages), expected (blocks) first"


def test_added_parameters_are_passed_through() -> None:
    class Extended(BlockPool):
        def cache_full_blocks(
            self,
            request: Any,
            blocks: list[KVCacheBlock],
            num_cached_blocks: int,
            num_full_blocks: int,
            block_size: int,
            kv_cache_group_id: int = 0,
            more: object = None,
        ) -> None:
            super().cache_full_blocks(request, blocks, num_cached_blocks, num_full_blocks, block_size)

    assert find_differences(build_host(pool=Extended)) == []


def test_a_missing_method_is_named() -> None:
    class Without(BlockPool):
        move_block_hashes = None  # type: ignore[assignment]  # refused for it

    assert find_differences(build_host(pool=Without)) == ["Without has no method move_block_hashes"]


def test_a_new_method_of_the_queue_is_a_call_we_would_miss() -> None:
    class Newer(FreeKVCacheBlockQueue):
        def popright(self) -> None: ...

    assert find_differences(build_host(queue=Newer)) == ["Newer has a method popright, unknown to the adapter"]


def test_a_pool_that_acts_otherwise_is_refused_though_its_shape_fits() -> None:
    class Lazy(BlockPool):
        def touch(self, blocks: Sequence[KVCacheBlock]) -> None:
            for block in blocks:
                block.ref_cnt += 1

    assert find_differences(build_host(pool=Lazy)) == [
        "Lazy, touching two free blocks: no call, expected remove 1, remove 2"
    ]


def test_a_block_without_a_hash_is_named() -> None:
    class Bare:
        block_id = ref_cnt = 0
        is_null = False

    assert find_differences(build_host(block=Bare)) == ["Bare has no block_hash"]


def test_a_class_that_moved_is_named() -> None:
    assert find_differences(build_host(queue=None)) == ["vllm.v1.core.block_pool has no class FreeKVCacheBlockQueue"]


def test_a_pool_replaced_by_somebody_else_is_refused() -> None:
    host = build_host()
    host.coordinator.BlockPool = KVCacheBlock  # type: ignore[attr-defined]  # of a module made on the spot
    (difference,) = find_differences(host)
    assert "another plugin replaced it" in difference
