"""An eviction order inside vLLM: a block pool that tells the order what happens, and a queue that asks it for victims.

vLLM's scheduler owns one block pool; the pool keeps its free blocks in a queue and evicts from the front. Here the
queue passes its calls to an `EvictionOrder`, and a subclass of the pool reports the events that a queue does not see:

    pool.cache_full_blocks, cache_partial_block  -> cache      queue.popleft, popleft_n   -> pop
    pool._remove_cached_block_hashes             -> uncache    queue.remove               -> pin
    pool.move_block_hashes                       -> move       queue.append, append_n     -> release
    pool.get_cached_block, then touch            -> hit        queue.prepend_n            -> discard
    pool.reset_prefix_cache                      -> clear      queue.iter_blocks_after    -> walk

A hit and a pin look the same in `touch`: the CPU-offload manager pins blocks through it while it copies them. So a
touch counts as a hit if a lookup returned the block since its last touch. In lazy mode the offload manager pins without
a lookup. In eager mode it looks up and pins blocks that requests hold; these are counted as hits, without effect on the
order.

A request's session, if it names one, is told with each full block that it caches. Hints about sessions wait in the
pool's `hints` until it takes new blocks. A request that fills no block of its own is taken for one of the session that
used its deepest block before.

An order sees the history of a request as the scheduler makes it:

    admission    lookups, hits of the cached prefix, pops for the rest, then a key for each block that the step fills;
                 later chunks of the prompt, and generated blocks that fill up, are pops and keys in later steps
    end          release of all blocks that carry a key, deepest first, so the length is known; an abort is an end too
    preemption   an end as well; the request comes back as a new one and hits what is left of its blocks
    recompute    the last block of a prompt that is cached whole is computed beside the cached one: a second copy

Blocks in use without a key (partly filled, reserved for speculation, waiting for a transfer) only take room.

Of a block with several hashes (a partial one beside the full one) the order knows the primary one, as nothing ever
continues a partial hash. Pools that get hashes in other ways (the offload manager's own pool on the CPU side) work too:
their blocks have no key for the order, which treats each of them as a leaf without a parent. vLLM 0.33 gives blocks
without a hash back by `append_n` in one place (`unpin_blocks`, for hybrid sparse attention), as victims of last resort;
an order treats them in the same way.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from engine_patches.errors import HostError
from engine_patches.orders import EvictionOrder

if TYPE_CHECKING:
    from vllm.v1.core.kv_cache_utils import KVCacheBlock


Hint = tuple[str, float | None]
"""A session, and in how many seconds its next request is expected; None: never."""

LONGEST_SESSION = 256  # characters
HINTS_WAITING = 4096  # at most; the oldest is dropped
HINTS_AT_ONCE = 64


def session_of(request: Any) -> str | None:
    """Return the session that a request names, None if it names none.

    vLLM since 0.32 has it in `Request.session_id`, from the header X-Session-ID, from the body's `session_id` or from
    `vllm_xargs`. All supported versions hand `vllm_xargs` on as `sampling_params.extra_args`.
    """
    name = getattr(request, "session_id", None)
    if name is None:
        extra = getattr(getattr(request, "sampling_params", None), "extra_args", None)
        name = extra.get("session_id") if extra else None
    return name if isinstance(name, str) and 0 < len(name) <= LONGEST_SESSION else None


class OrderQueue:
    """All methods of the host's queue of free blocks, answered by an order. The first `popleft` returns block 0."""

    def __init__(self, blocks: Sequence[KVCacheBlock], order: EvictionOrder) -> None:
        self._blocks = blocks
        self._order = order

    @property
    def num_free_blocks(self) -> int:
        return self._order.free

    def popleft(self) -> KVCacheBlock:
        if not self._order.free:
            raise ValueError("no free blocks available")
        return self._blocks[self._order.pop()]

    def popleft_n(self, n: int) -> list[KVCacheBlock]:
        assert self._order.free >= n, f"asked for {n} of {self._order.free} free blocks"
        blocks, pop = self._blocks, self._order.pop
        return [blocks[pop()] for _ in range(n)]

    def remove(self, block: KVCacheBlock) -> None:
        self._order.pin(block.block_id)

    def append(self, block: KVCacheBlock) -> None:
        self._order.release([block.block_id])

    def append_n(self, blocks: list[KVCacheBlock]) -> None:
        self._order.release([block.block_id for block in blocks])

    def prepend_n(self, blocks: list[KVCacheBlock]) -> None:
        self._order.discard([block.block_id for block in blocks])

    def get_all_free_blocks(self) -> list[KVCacheBlock]:
        return list(self.iter_blocks_after(None))

    def iter_blocks_after(self, cursor: KVCacheBlock | None) -> Iterator[KVCacheBlock]:
        after = None if cursor is None else cursor.block_id
        return (self._blocks[block] for block in self._order.walk(after))


def build_pool_class(host_pool: Any, make_order: Callable[[int], EvictionOrder], on_pool: Callable[[Any], None]) -> Any:
    """Return a subclass of the host's BlockPool whose free blocks are kept by `make_order(number of blocks)`.

    `on_pool` is called with each pool when it has been built; `pool.order` is its order.
    """

    class LeafcutterBlockPool(host_pool):  # type: ignore[misc]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.order = make_order(self.num_gpu_blocks)
            self.free_block_queue = OrderQueue(self.blocks, self.order)
            # The host took its null block from the queue that it built itself, so take the same one from ours.
            if self.free_block_queue.popleft() is not self.null_block:
                raise HostError(f"the null block is block {self.null_block.block_id}, expected 0")
            self._looked_up = bytearray(self.num_gpu_blocks)
            # Other threads append to it, which is one step of theirs, so that no lock is needed here.
            self.hints: deque[Hint] = deque(maxlen=HINTS_WAITING)
            on_pool(self)

        def get_new_blocks(self, num_blocks: int) -> Any:
            if self.hints:
                for _ in range(min(HINTS_AT_ONCE, len(self.hints))):
                    self.order.expect(*self.hints.popleft())
            return super().get_new_blocks(num_blocks)

        def get_cached_block(self, block_hash: Any, kv_cache_group_ids: list[int]) -> Any:
            blocks = super().get_cached_block(block_hash, kv_cache_group_ids)
            if blocks:
                for block in blocks:
                    self._looked_up[block.block_id] = 1
            return blocks

        def touch(self, blocks: Sequence[KVCacheBlock]) -> None:
            looked_up = self._looked_up
            for block in blocks:
                if looked_up[block.block_id]:
                    looked_up[block.block_id] = 0
                    self.order.hit(block.block_id)
            super().touch(blocks)  # takes what is still free out of the queue: a pin

        def cache_full_blocks(
            self,
            request: Any,
            blocks: list[KVCacheBlock],
            num_cached_blocks: int,
            num_full_blocks: int,
            *args: Any,
            **kwargs: Any,
        ) -> None:
            super().cache_full_blocks(request, blocks, num_cached_blocks, num_full_blocks, *args, **kwargs)
            # Null blocks and blocks that the host chose not to cache have no hash: behind them a chain begins anew.
            parent = blocks[num_cached_blocks - 1].block_hash if num_cached_blocks else None
            deepest = -1
            for position in range(num_cached_blocks, num_full_blocks):
                block = blocks[position]
                key = block.block_hash
                if key is not None:
                    self.order.cache(block.block_id, key, parent, position)
                    deepest = block.block_id
                parent = key
            session = session_of(request)
            if session is not None and deepest >= 0:
                self.order.assign(deepest, session, request.arrival_time)

        def cache_partial_block(
            self,
            request: Any,
            block: KVCacheBlock,
            num_tokens: int,
            kv_cache_group_id: int,
            block_size: int,
            *args: Any,
            **kwargs: Any,
        ) -> Any:
            key = super().cache_partial_block(
                request, block, num_tokens, kv_cache_group_id, block_size, *args, **kwargs
            )
            if key is not None and block.block_hash == key:
                position = (num_tokens - 1) // block_size
                # Hashes are chained every hash_block_size tokens; a key is a hash and four bytes that name the group.
                hashes = position * block_size // self.hash_block_size
                parent = request.block_hashes[hashes - 1] + key[-4:] if hashes else None
                self.order.cache(block.block_id, key, parent, position)
            return key

        def _remove_cached_block_hashes(self, block: KVCacheBlock) -> Any:
            removed = super()._remove_cached_block_hashes(block)
            self._looked_up[block.block_id] = 0
            self.order.uncache(block.block_id)
            return removed

        def move_block_hashes(self, src_block: KVCacheBlock, dst_block: KVCacheBlock) -> None:
            self.order.move(src_block.block_id, dst_block.block_id)
            super().move_block_hashes(src_block, dst_block)

        def reset_prefix_cache(self) -> bool:
            done: bool = super().reset_prefix_cache()
            if done:
                self._looked_up = bytearray(self.num_gpu_blocks)
                self.order.clear()
            return done

    return LeafcutterBlockPool
