"""Just enough of vLLM for the plugin: modules made on the spot, with a plain block pool that works."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from engine_patches.host_interface import Host


@dataclass(slots=True, eq=False)
class KVCacheBlock:
    block_id: int
    ref_cnt: int = 0
    block_hash: bytes | None = None
    is_null: bool = False


class FreeKVCacheBlockQueue:
    """A list; the front is evicted first."""

    def __init__(self, blocks: Iterable[KVCacheBlock]) -> None:
        self._free = list(blocks)

    @property
    def num_free_blocks(self) -> int:
        return len(self._free)

    def popleft(self) -> KVCacheBlock:
        return self._free.pop(0)

    def popleft_n(self, n: int) -> list[KVCacheBlock]:
        return [self.popleft() for _ in range(n)]

    def remove(self, block: KVCacheBlock) -> None:
        self._free.remove(block)

    def append(self, block: KVCacheBlock) -> None:
        self._free.append(block)

    def append_n(self, blocks: list[KVCacheBlock]) -> None:
        self._free += blocks

    def prepend_n(self, blocks: list[KVCacheBlock]) -> None:
        self._free = [*blocks, *self._free]

    def get_all_free_blocks(self) -> None: ...
    def iter_blocks_after(self, cursor: KVCacheBlock | None) -> None: ...


class BlockPool:
    """A block pool without events and partial blocks, in which each hash has one block."""

    def __init__(self, num_gpu_blocks: int, enable_caching: bool, hash_block_size: int) -> None:
        self.num_gpu_blocks = num_gpu_blocks
        self.hash_block_size = hash_block_size
        self.blocks = [KVCacheBlock(block_id) for block_id in range(num_gpu_blocks)]
        self.free_block_queue = FreeKVCacheBlockQueue(self.blocks)
        self.null_block = self.free_block_queue.popleft()

    def get_cached_block(self, block_hash: bytes, kv_cache_group_ids: list[int]) -> list[KVCacheBlock] | None:
        return [block for block in self.blocks if block.block_hash == block_hash + bytes(4)] or None

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
            blocks[index].block_hash = request.block_hashes[index] + bytes(4)

    def cache_partial_block(
        self, request: Any, block: KVCacheBlock, num_tokens: int, kv_cache_group_id: int, block_size: int
    ) -> None: ...

    def move_block_hashes(self, src_block: KVCacheBlock, dst_block: KVCacheBlock) -> None:
        (dst_block.block_hash,) = self._remove_cached_block_hashes(src_block)

    def _remove_cached_block_hashes(self, block: KVCacheBlock) -> list[bytes]:
        removed, block.block_hash = block.block_hash, None
        return [removed] if removed else []

    def _maybe_evict_cached_block(self, block: KVCacheBlock) -> bool:
        return bool(self._remove_cached_block_hashes(block))

    def get_new_blocks(self, num_blocks: int) -> list[KVCacheBlock]:
        blocks = self.free_block_queue.popleft_n(num_blocks)
        for block in blocks:
            self._maybe_evict_cached_block(block)
            block.ref_cnt = 1
        return blocks

    def touch(self, blocks: Sequence[KVCacheBlock]) -> None:
        for block in blocks:
            if block.ref_cnt == 0:
                self.free_block_queue.remove(block)
            block.ref_cnt += 1

    def free_blocks(self, ordered_blocks: Sequence[KVCacheBlock]) -> None:
        for block in ordered_blocks:
            block.ref_cnt -= 1
        free = [block for block in ordered_blocks if block.ref_cnt == 0]
        self.free_block_queue.prepend_n([block for block in free if block.block_hash is None])
        self.free_block_queue.append_n([block for block in free if block.block_hash is not None])

    def evict_blocks(self, block_ids: set[int]) -> None:
        for block_id in block_ids:
            self._maybe_evict_cached_block(self.blocks[block_id])

    def reset_prefix_cache(self) -> bool:
        if self.get_num_free_blocks() != self.num_gpu_blocks - 1:
            return False
        for block in self.blocks:
            block.block_hash = None
        return True

    def get_num_free_blocks(self) -> int:
        return self.free_block_queue.num_free_blocks


def build_host(
    version: str = "0.32.0",
    pool: type | None = BlockPool,
    queue: type | None = FreeKVCacheBlockQueue,
    block: type | None = KVCacheBlock,
) -> Host:
    """A host with modules of its own; a class that is None is left out."""
    coordinator, block_pool, utils = (
        ModuleType(f"vllm.v1.core.{name}") for name in ("kv_cache_coordinator", "block_pool", "kv_cache_utils")
    )
    for module, name, value in (
        (coordinator, "BlockPool", pool),
        (block_pool, "BlockPool", pool),
        (block_pool, "FreeKVCacheBlockQueue", queue),
        (utils, "KVCacheBlock", block),
    ):
        if value is not None:
            setattr(module, name, value)
    return Host(version, coordinator, block_pool, utils)
