"""The clairvoyant optimum: the victim is the leaf whose next use is furthest away (Belady 1966, on a forest).

A block is used whenever one below it is, so among all cached blocks one with the furthest next use is always a leaf:
the choice among leaves gives nothing away, and no order has more hits on the trace.

Two passes, and neither holds the trace: the first one writes the time of every access's next use to a temporary file,
8 bytes an access, and keeps one number for every different block; the second one replays.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from heapq import heapify, heappop, heappush
from mmap import mmap
from tempfile import TemporaryFile
from time import thread_time
from typing import IO

from router.sim.eviction.replay import prefix_keys
from router.sim.trace import Request

NEVER = 1 << 62
_FIRST_NUMBERS = 1 << 16


class DiskArray:
    """Numbers in a file, zero until set. It grows, on the disk."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._map(_FIRST_NUMBERS)

    def _map(self, size: int) -> None:
        self._file.truncate(8 * size)
        self._pages = mmap(self._file.fileno(), 8 * size)
        self.numbers = memoryview(self._pages).cast("q")

    def reserve(self, size: int) -> None:
        """Makes room for `size` numbers; `numbers` is another object afterwards."""
        if size > len(self.numbers):
            size = max(size, 2 * len(self.numbers))
            self.close()
            self._map(size)

    def close(self) -> None:
        self.numbers.release()
        self._pages.close()


@contextmanager
def next_uses(requests: Iterable[Request], capacity: int) -> Iterator[Iterator[int]]:
    """For each key of each request's chain, in turn, the time of its next use; NEVER if there is none.

    Time counts these keys, from 0. What is given ends with the context.
    """
    last: dict[int, int] = {}
    now = 0
    with TemporaryFile() as file:
        column = DiskArray(file)
        try:
            for request in requests:
                keys, _ = prefix_keys(request, capacity)
                column.reserve(now + len(keys))
                for key in keys:
                    if key in last:
                        column.numbers[last[key]] = now
                    last[key] = now
                    now += 1
            last.clear()
            yield (column.numbers[time] or NEVER for time in range(now))
        finally:
            column.close()


class Optimum:
    """A `PrefixCache` that knows the future. `uses`: from `next_uses`, of the same requests and capacity.

    The leaves stand in a heap by their next use. An entry is void once its block is used, evicted or a leaf no longer;
    void ones are dropped when they come up, or all at once when there are more than three for each block.
    """

    fallback = False

    def __init__(self, capacity: int, uses: Iterator[int]) -> None:
        self.capacity = capacity
        self.seconds = 0.0
        self._uses = uses
        self._next_use: dict[int, int] = {}  # the cached keys: when each is used next
        self._parent: dict[int, int | None] = {}
        self._children: dict[int, int] = {}
        self._heap: list[tuple[int, int, int]] = []
        self._pushed = 0

    def serve(self, request: Request) -> int:
        """One request. Its hits, counted as `Cache` does."""
        start = thread_time()
        keys, more = prefix_keys(request, self.capacity)
        held = set(keys)
        fresh = [position for position, key in enumerate(keys) if key not in self._next_use]
        for _ in range(len(self._next_use) + len(fresh) - self.capacity):
            self._evict(held)
        for position in fresh:
            key, parent = keys[position], keys[position - 1] if position else None
            self._parent[key], self._children[key] = parent, 0
            if parent is not None:
                self._children[parent] += 1
        for key, use in zip(keys, self._uses, strict=False):
            self._next_use[key] = use
        if keys:
            self._push(keys[-1])
        self.seconds += thread_time() - start
        return len(keys) - len(fresh) + more

    def _push(self, key: int) -> None:
        """Among the leaves, if it is one."""
        if self._children[key]:
            return
        self._pushed += 1
        heappush(self._heap, (-self._next_use[key], self._pushed, key))
        if len(self._heap) > 3 * self.capacity + 64:
            leaves = (key for key in self._next_use if not self._children[key])
            self._heap = [(-self._next_use[key], number, key) for number, key in enumerate(leaves)]
            heapify(self._heap)

    def _evict(self, held: set[int]) -> None:
        while True:
            negative, _, key = heappop(self._heap)
            if self._next_use.get(key) == -negative and not self._children[key] and key not in held:
                break
        parent = self._parent.pop(key)
        del self._next_use[key], self._children[key]
        if parent is not None:
            self._children[parent] -= 1
            if parent not in held:
                self._push(parent)
