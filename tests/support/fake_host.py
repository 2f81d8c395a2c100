"""Just enough of vLLM for the plugin: modules made on the spot, with a block pool that works, as plainly as can be."""

from dataclasses import dataclass
from types import ModuleType

from engine_patches.host_interface import Host


@dataclass(slots=True, eq=False)
class KVCacheBlock:
    block_id: int
    ref_cnt: int = 0
    block_hash: bytes | None = None
    is_null: bool = False


class FreeKVCacheBlockQueue:
    """A list; the front is evicted first."""

    def __init__(self, blocks):
        self._free = list(blocks)

    @property
    def num_free_blocks(self):
        return len(self._free)

    def popleft(self):
        return self._free.pop(0)

    def popleft_n(self, n):
        return [self.popleft() for _ in range(n)]

    def remove(self, block):
        self._free.remove(block)

    def append(self, block):
        self._free.append(block)

    def append_n(self, blocks):
        self._free += blocks

    def prepend_n(self, blocks):
        self._free = [*blocks, *self._free]

    def get_all_free_blocks(self): ...
    def iter_blocks_after(self, cursor): ...


class BlockPool:
    """Without events and partial blocks; a hash has one block."""

    def __init__(self, num_gpu_blocks, enable_caching, hash_block_size):
        self.num_gpu_blocks = num_gpu_blocks
        self.hash_block_size = hash_block_size
        self.blocks = [KVCacheBlock(block_id) for block_id in range(num_gpu_blocks)]
        self.free_block_queue = FreeKVCacheBlockQueue(self.blocks)
        self.null_block = self.free_block_queue.popleft()

    def get_cached_block(self, block_hash, kv_cache_group_ids):
        return [block for block in self.blocks if block.block_hash == block_hash + bytes(4)] or None

    def cache_full_blocks(self, request, blocks, num_cached_blocks, num_full_blocks, block_size, kv_cache_group_id=0):
        for place in range(num_cached_blocks, num_full_blocks):
            blocks[place].block_hash = request.block_hashes[place] + bytes(4)

    def cache_partial_block(self, request, block, num_tokens, kv_cache_group_id, block_size): ...

    def move_block_hashes(self, src_block, dst_block):
        (dst_block.block_hash,) = self._remove_cached_block_hashes(src_block)

    def _remove_cached_block_hashes(self, block):
        removed, block.block_hash = block.block_hash, None
        return [removed] if removed else []

    def _maybe_evict_cached_block(self, block):
        return bool(self._remove_cached_block_hashes(block))

    def get_new_blocks(self, num_blocks):
        blocks = self.free_block_queue.popleft_n(num_blocks)
        for block in blocks:
            self._maybe_evict_cached_block(block)
            block.ref_cnt = 1
        return blocks

    def touch(self, blocks):
        for block in blocks:
            if block.ref_cnt == 0:
                self.free_block_queue.remove(block)
            block.ref_cnt += 1

    def free_blocks(self, ordered_blocks):
        for block in ordered_blocks:
            block.ref_cnt -= 1
        free = [block for block in ordered_blocks if block.ref_cnt == 0]
        self.free_block_queue.prepend_n([block for block in free if block.block_hash is None])
        self.free_block_queue.append_n([block for block in free if block.block_hash is not None])

    def evict_blocks(self, block_ids):
        for block_id in block_ids:
            self._maybe_evict_cached_block(self.blocks[block_id])

    def reset_prefix_cache(self):
        if self.get_num_free_blocks() != self.num_gpu_blocks - 1:
            return False
        for block in self.blocks:
            block.block_hash = None
        return True

    def get_num_free_blocks(self):
        return self.free_block_queue.num_free_blocks


def build_host(version="0.32.0", pool=BlockPool, queue=FreeKVCacheBlockQueue, block=KVCacheBlock):
    """A fresh host; `None` leaves a class out."""
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
