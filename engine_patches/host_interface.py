"""The interface of vLLM that the adapter relies on, and the check that the vLLM at hand (the host) has it.

All supported versions have the same interface here. A host is refused if its names, its parameters or its behaviour
(see `host_trial`) differ, because an order that misses one event has a wrong picture of the cache from then on.
"""

import inspect
import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import ModuleType

from engine_patches.host_trial import find_deviations

OLDEST, BELOW = (0, 26), (0, 34)

# Methods of the host's block pool that the adapter overrides or relies on, with their first parameters.
POOL_METHODS: Mapping[str, tuple[str, ...]] = {
    "__init__": ("num_gpu_blocks", "enable_caching", "hash_block_size"),
    "get_cached_block": ("block_hash", "kv_cache_group_ids"),
    "cache_full_blocks": ("request", "blocks", "num_cached_blocks", "num_full_blocks", "block_size"),
    "cache_partial_block": ("request", "block", "num_tokens", "kv_cache_group_id", "block_size"),
    "move_block_hashes": ("src_block", "dst_block"),
    "_remove_cached_block_hashes": ("block",),
    "_maybe_evict_cached_block": ("block",),
    "get_new_blocks": ("num_blocks",),
    "touch": ("blocks",),
    "free_blocks": ("ordered_blocks",),
    "evict_blocks": ("block_ids",),
    "reset_prefix_cache": (),
    "get_num_free_blocks": (),
}

# All public methods of the host's queue of free blocks: a method that our queue lacks is a call that we would miss.
QUEUE_METHODS: Mapping[str, tuple[str, ...]] = {
    "popleft": (),
    "popleft_n": ("n",),
    "remove": ("block",),
    "append": ("block",),
    "append_n": ("blocks",),
    "prepend_n": ("blocks",),
    "get_all_free_blocks": (),
    "iter_blocks_after": ("cursor",),
}

BLOCK_ATTRIBUTES = ("block_id", "ref_cnt", "is_null", "block_hash")


@dataclass(frozen=True)
class Host:
    """vLLM as the plugin sees it: its version text and three modules under `vllm.v1.core`."""

    version: str
    coordinator: ModuleType
    block_pool: ModuleType
    kv_cache_utils: ModuleType


def find_differences(host: Host) -> list[str]:
    """Return one sentence for each thing that differs from a supported host; an empty list if nothing does."""
    problems = _version_problems(host.version)
    for module, name in (
        (host.coordinator, "BlockPool"),
        (host.block_pool, "BlockPool"),
        (host.block_pool, "FreeKVCacheBlockQueue"),
        (host.kv_cache_utils, "KVCacheBlock"),
    ):
        if not inspect.isclass(getattr(module, name, None)):
            problems.append(f"{module.__name__} has no class {name}")
    if problems:
        return problems
    pool, queue = host.block_pool.BlockPool, host.block_pool.FreeKVCacheBlockQueue
    if host.coordinator.BlockPool is not pool:
        problems.append(f"{host.coordinator.__name__}.BlockPool is not vLLM's own: another plugin replaced it")
    problems += _method_problems(pool, POOL_METHODS) + _method_problems(queue, QUEUE_METHODS)
    unknown = {name for name in vars(queue) if not name.startswith("_")} - {*QUEUE_METHODS, "num_free_blocks"}
    problems += [f"{queue.__name__} has a method {name}, unknown to the adapter" for name in sorted(unknown)]
    block = host.kv_cache_utils.KVCacheBlock
    known = {*dir(block), *getattr(block, "__dataclass_fields__", ())}
    problems += [f"{block.__name__} has no {name}" for name in BLOCK_ATTRIBUTES if name not in known]
    return problems or find_deviations(pool)


def _version_problems(version: str) -> list[str]:
    match = re.match(r"(\d+)\.(\d+)", version)
    if match and OLDEST <= (int(match[1]), int(match[2])) < BELOW:
        return []
    supported = ">={}.{},<{}.{}".format(*OLDEST, *BELOW)
    return [f"vLLM is version {version}, supported is {supported}"]


def _method_problems(owner: type, expected: Mapping[str, tuple[str, ...]]) -> list[str]:
    problems = []
    for name, parameters in expected.items():
        method = getattr(owner, name, None)
        if not inspect.isfunction(method):
            problems.append(f"{owner.__name__} has no method {name}")
            continue
        found = tuple(inspect.signature(method).parameters)[1:]
        if found[: len(parameters)] != parameters:
            problems.append(
                f"{owner.__name__}.{name} takes ({', '.join(found)}), expected ({', '.join(parameters)}) first"
            )
    return problems
