"""A trial of the host's block pool: five blocks go through a whole life, and the calls to the pool's queue are checked.

Names and parameters can stay the same while their meaning changes. A pool that gave unhashed blocks back by `append_n`,
or that ended a hash without `_remove_cached_block_hashes`, would leave the order with a wrong picture of the cache. The
trial runs once, on a small pool of the host's own class, before the adapter takes its place.
"""

from collections.abc import Iterable, Iterator
from types import SimpleNamespace
from typing import Any

BLOCK_TOKENS = 16
HASHES = [bytes([place]) * 32 for place in range(1, 3)]


def find_deviations(pool_class: Any) -> list[str]:
    """Return a sentence on the first thing that the pool does otherwise than the adapter expects, or an empty list.

    The trial ends at the first deviation, because everything after it means nothing.
    """
    try:
        for what, found, expected in _try(pool_class):
            if found != expected:
                return [f"{pool_class.__name__}, {what}: {found}, expected {expected}"]
    except Exception as error:  # an unknown host may fail in any way, and every way is a reason to refuse it
        return [f"{pool_class.__name__} failed a trial: {error!r}"]
    return []


def _try(pool_class: Any) -> Iterator[tuple[str, object, object]]:
    """Yield, for each step of the trial, what was done, what came of it, and what was expected."""
    calls: list[str] = []

    def seen() -> str:
        text = ", ".join(calls) or "no call"
        calls.clear()
        return text

    class Watched(pool_class):  # type: ignore[misc]
        def _remove_cached_block_hashes(self, block: Any) -> Any:
            if block.block_hash is not None:
                calls.append(f"_remove_cached_block_hashes {block.block_id}")
            return super()._remove_cached_block_hashes(block)

    pool = Watched(num_gpu_blocks=6, enable_caching=True, hash_block_size=BLOCK_TOKENS)
    pool.free_block_queue = _WatchedQueue(pool.free_block_queue, calls)
    yield "free blocks of 6", pool.get_num_free_blocks(), 5

    taken = pool.get_new_blocks(4)
    first, second, third, fourth = taken
    yield "taking 4 blocks", seen(), "popleft_n 4"

    request = SimpleNamespace(block_hashes=HASHES)
    pool.cache_full_blocks(request, taken, 0, 2, BLOCK_TOKENS, kv_cache_group_id=0)
    yield "caching 2 of 4 blocks", seen(), "no call"
    yield "their hashes", [block.block_hash and block.block_hash[:-4] for block in taken], [*HASHES, None, None]
    yield "a lookup", _ids(pool.get_cached_block(HASHES[0], [0])), "1"

    pool.free_blocks([fourth, second, first])
    yield "freeing one block without a hash and two with", seen(), "prepend_n 4, append_n 2 1"
    pool.touch([first, second])
    yield "touching two free blocks", seen(), "remove 1, remove 2"
    pool.touch([first])
    pool.free_blocks([first])
    yield "touching and freeing a block in use", seen(), "no call"

    pool.move_block_hashes(second, third)
    yield "moving a hash", seen(), "_remove_cached_block_hashes 2"
    yield "the hash moved", third.block_hash and third.block_hash[:-4], HASHES[1]
    pool.evict_blocks({third.block_id})
    yield "ending a hash in use", seen(), "_remove_cached_block_hashes 3"

    pool.free_blocks([third, second, first])
    seen()
    taken = pool.get_new_blocks(5)
    yield "taking all 5 blocks, one of them cached", seen(), "popleft_n 5, _remove_cached_block_hashes 1"

    pool.cache_full_blocks(request, taken, 0, 2, BLOCK_TOKENS, kv_cache_group_id=0)
    yield "a reset with blocks in use", pool.reset_prefix_cache(), False
    pool.free_blocks(taken)
    yield "a reset of a cache at rest", pool.reset_prefix_cache(), True
    yield "a lookup after a reset", pool.get_cached_block(HASHES[0], [0]), None


class _WatchedQueue:
    """The host's own queue behind a recorder: each call is added to `calls` as text, then passed on."""

    def __init__(self, queue: Any, calls: list[str]) -> None:
        self._queue = queue
        self._calls = calls

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._queue, name)
        if not callable(value):
            return value

        def call(*arguments: Any) -> Any:
            if arguments != ([],):
                self._calls.append(" ".join([name, *map(_ids, arguments)]))
            return value(*arguments)

        return call


def _ids(argument: Any) -> str:
    """Return the ids of a block or of several blocks as text; a plain number stands for itself."""
    several = argument if isinstance(argument, Iterable) else [argument]
    return " ".join(str(getattr(each, "block_id", each)) for each in several)
