"""Random use of vLLM's real KVCacheManager: the scheduler's calls, without a model.

Two runs with one seed make the same choices as long as the managers answer the same, so the logs of two managers
can be compared line by line.
"""

import random
from collections.abc import Callable
from typing import Any

import torch
from vllm.sampling_params import SamplingParams
from vllm.utils.hashing import sha256
from vllm.v1.core.kv_cache_manager import KVCacheManager
from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash
from vllm.v1.kv_cache_interface import (
    FullAttentionSpec,
    KVCacheConfig,
    KVCacheGroupSpec,
    MambaSpec,
    SlidingWindowSpec,
)
from vllm.v1.request import Request, RequestStatus

HASH_BLOCK = 4  # tokens


def full(block_size: int = HASH_BLOCK) -> Any:
    return FullAttentionSpec(block_size=block_size, num_kv_heads=1, head_size=1, dtype=torch.float32)


def window(tokens: int) -> Any:
    return SlidingWindowSpec(
        block_size=HASH_BLOCK, num_kv_heads=1, head_size=1, dtype=torch.float32, sliding_window=tokens
    )


def state(block_size: int = HASH_BLOCK) -> Any:
    return MambaSpec(block_size=block_size, shapes=((2, 4),), dtypes=(torch.float32,), mamba_cache_mode="align")


# Name -> the groups of a model. "coarse" has blocks of more than one hash: partial hits and copies on write.
MODELS: dict[str, Callable[[], list[Any]]] = {
    "full": lambda: [full()],
    "full and two windows": lambda: [full(), window(9), window(17)],
    "full and window": lambda: [full(), window(9)],
    "coarse full and window": lambda: [full(2 * HASH_BLOCK), window(9)],
    "full and state": lambda: [full(), state()],
    "coarse full and state": lambda: [full(2 * HASH_BLOCK), state(2 * HASH_BLOCK)],
}


class Traffic:
    """`log` gets one entry for each call: what it returned, the free blocks in eviction order, and the events."""

    def __init__(self, model: str, num_blocks: int, seed: int, *, caching: bool = True) -> None:
        init_none_hash(sha256)
        specs = MODELS[model]()
        config = KVCacheConfig(
            num_blocks=num_blocks,
            kv_cache_tensors=[],
            kv_cache_groups=[KVCacheGroupSpec([f"layer {i}"], spec) for i, spec in enumerate(specs)],
        )
        self.manager = KVCacheManager(
            config,
            max_model_len=256,
            scheduler_block_size=max(spec.block_size for spec in specs),
            hash_block_size=HASH_BLOCK,
            enable_caching=caching,
            enable_kv_cache_events=True,
        )
        self.pool = self.manager.block_pool
        self.random = random.Random(seed)
        self.hasher = get_request_block_hasher(HASH_BLOCK, sha256)
        self.running: list[Any] = []
        self.copied: list[Any] = []  # blocks that an offload manager pins while it copies them
        self.cursor: Any = None
        self.count = 0
        self.log: list[tuple[Any, ...]] = []

    def step(self) -> None:
        draw = self.random.random()
        if draw < 0.35:
            done = self.admit()
        elif draw < 0.65:
            done = self.decode()
        elif draw < 0.85:
            done = self.finish()
        elif draw < 0.9:
            done = self.offload()
        elif draw < 0.94 and self.copied:
            done = self.pool.free_blocks([self.copied.pop()])
        elif draw < 0.99:
            block_id = self.random.randrange(1, self.pool.num_gpu_blocks)
            done = self.manager.evict_blocks({block_id})
        else:
            done = self.reset()
        copies, retained = self.manager.take_kv_cache_block_copies()
        self.pool.free_blocks(retained)
        self.manager.new_step_starts()
        free = [block.block_id for block in self.pool.free_block_queue.get_all_free_blocks()]
        self.log.append((done, copies, free, self.manager.take_events(), self.pool.get_num_free_blocks()))

    def admit(self) -> Any:
        """Few distinct prompts, cut at random places: shared prefixes, partial blocks, duplicates in one step."""
        self.count += 1
        stem = self.random.randrange(3)
        length = self.random.randint(2, 40)
        tokens = [stem * 100 + place for place in range(length)]
        if self.random.random() < 0.4:
            tokens[length // 2 :] = [1000 + self.count] * (length - length // 2)
        params = SamplingParams(max_tokens=8)
        params.update_from_generation_config({}, eos_token_id=99_999)
        request = Request(str(self.count), tokens, params, None, block_hasher=self.hasher)
        if self.random.random() < 0.15:
            request.skip_reading_prefix_cache = True  # computes what is cached already: duplicates
        blocks, num_computed, _ = self.manager.get_computed_blocks(request)
        # Often in two chunks, the first up to the last whole hash: state-space groups keep that boundary.
        chunk = length - num_computed
        boundary = (length - 1) // HASH_BLOCK * HASH_BLOCK
        if boundary > num_computed and self.random.random() < 0.6:
            chunk = boundary - num_computed
        if self.manager.allocate_slots(request, chunk, num_computed, blocks) is None:
            return None
        request.status = RequestStatus.RUNNING
        request.num_computed_tokens = num_computed + chunk
        self.running.append(request)
        return num_computed, self.manager.get_block_ids(request.request_id)

    def decode(self) -> Any:
        if not self.running:
            return None
        request = self.random.choice(self.running)
        if request.num_tokens > 200:
            return None
        if request.num_computed_tokens == request.num_tokens:
            request.append_output_token_ids(self.random.randrange(2))
        chunk = request.num_tokens - request.num_computed_tokens
        if self.manager.allocate_slots(request, chunk) is None:
            return self.free(request)  # preempted, for good
        request.num_computed_tokens += chunk
        return self.manager.get_block_ids(request.request_id)

    def finish(self) -> Any:
        return self.free(self.random.choice(self.running)) if self.running else None

    def free(self, request: Any) -> tuple[str, str]:
        self.running.remove(request)
        self.manager.free(request)
        return "freed", request.request_id

    def offload(self) -> list[int]:
        """The lazy CPU-offload manager: walks on from its cursor in eviction order and pins what is cached."""
        if self.cursor is not None and self.cursor.ref_cnt > 0:
            self.cursor = None
        walked = []
        for block in self.pool.free_block_queue.iter_blocks_after(self.cursor):
            walked.append(block)
            if len(walked) == 3:
                break
        if walked:
            self.cursor = walked[-1]
        pinned = [block for block in walked if block.block_hash is not None]
        self.pool.touch(pinned)
        self.copied += pinned
        return [block.block_id for block in walked]

    def reset(self) -> Any:
        while self.running:
            self.free(self.running[0])
        self.pool.free_blocks(self.copied)
        self.copied = []
        self.cursor = None
        return self.manager.reset_prefix_cache()
