"""A host that keeps its names and changes what it does is found out."""

from collections.abc import Sequence
from typing import Any

import pytest

from engine_patches.host_interface import Host
from engine_patches.host_trial import find_deviations
from tests.support.fake_host import BlockPool, KVCacheBlock, build_host


def test_the_real_pool_does_as_expected(host: Host) -> None:
    assert find_deviations(host.block_pool.BlockPool) == []


def test_the_trial_leaves_the_class_as_it_is(host: Host) -> None:
    before = dict(vars(host.block_pool.BlockPool))
    find_deviations(host.block_pool.BlockPool)
    assert dict(vars(host.block_pool.BlockPool)) == before


class KeepsAll(BlockPool):
    def free_blocks(self, ordered_blocks: Sequence[KVCacheBlock]) -> None:
        for block in ordered_blocks:
            block.ref_cnt -= 1
        self.free_block_queue.append_n([block for block in ordered_blocks if block.ref_cnt == 0])


class TakesOneByOne(BlockPool):
    def get_new_blocks(self, num_blocks: int) -> list[KVCacheBlock]:
        return [self.free_block_queue.popleft() for _ in range(num_blocks)]


class EndsHashesItself(BlockPool):
    def _maybe_evict_cached_block(self, block: KVCacheBlock) -> bool:
        block.block_hash = None
        return True


class LeavesInQueue(BlockPool):
    def touch(self, blocks: Sequence[KVCacheBlock]) -> None:
        for block in blocks:
            block.ref_cnt += 1


class HashWithoutGroup(BlockPool):
    def cache_full_blocks(
        self,
        request: Any,
        blocks: list[KVCacheBlock],
        num_cached_blocks: int,
        num_full_blocks: int,
        block_size: int,
        kv_cache_group_id: int = 0,
    ) -> None:
        for index in range(num_cached_blocks, num_full_blocks):
            blocks[index].block_hash = request.block_hashes[index]


class ResetsInUse(BlockPool):
    def reset_prefix_cache(self) -> bool:
        return True


class Breaks(BlockPool):
    def touch(self, blocks: Sequence[KVCacheBlock]) -> None:
        raise KeyError("pages")


@pytest.mark.parametrize(
    ("pool", "sentence"),
    [
        (KeepsAll, "freeing one block without a hash and two with: append_n 4 2 1, expected prepend_n 4, append_n 2 1"),
        (TakesOneByOne, "taking 4 blocks: popleft, popleft, popleft, popleft, expected popleft_n 4"),
        (EndsHashesItself, "ending a hash in use: no call, expected _remove_cached_block_hashes 3"),
        (LeavesInQueue, "touching two free blocks: no call, expected remove 1, remove 2"),
        (HashWithoutGroup, "their hashes: "),
        (ResetsInUse, "a reset with blocks in use: True, expected False"),
    ],
)
def test_the_first_deviation_is_named(pool: type[BlockPool], sentence: str) -> None:
    (found,) = find_deviations(pool)
    assert found.startswith(f"{pool.__name__}, {sentence}")


def test_a_pool_that_breaks_is_a_reason_to_refuse() -> None:
    assert find_deviations(Breaks) == ["Breaks failed a trial: KeyError('pages')"]


def test_the_fake_host_behaves() -> None:
    assert find_deviations(build_host().block_pool.BlockPool) == []
