"""The clairvoyant optimum: it evicts the leaf whose next use is furthest away (Belady 1966, on a forest).

A block is used whenever a block below it is used, so among all cached blocks with the furthest next use there is always
a leaf. Choosing among the leaves alone therefore loses nothing, and no order has more hits on the trace.

This takes two passes, and neither holds the trace. The first one writes the time of the next use of every access to a
temporary file, 8 bytes an access, and keeps one number for every different block. The second one replays.
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

NEVER = 1 << 62  # The time of a use that does not come.
_FIRST_NUMBERS = 1 << 16  # The size of a new array.


class DiskArray:
    """A growing array of 64-bit numbers that lives in a file. Each number is 0 until it is set."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._map(_FIRST_NUMBERS)

    def _map(self, size: int) -> None:
        self._file.truncate(8 * size)
        self._pages = mmap(self._file.fileno(), 8 * size)
        self.numbers = memoryview(self._pages).cast("q")

    def reserve(self, size: int) -> None:
        """Make room for `size` numbers. `numbers` may be another object afterwards."""
        if size > len(self.numbers):
            size = max(size, 2 * len(self.numbers))
            self.close()
            self._map(size)

    def close(self) -> None:
        self.numbers.release()
        self._pages.close()


@contextmanager
def next_uses(requests: Iterable[Request], capacity: int) -> Iterator[Iterator[int]]:
    """Give, for every key of `prefix_keys` of every request in turn, the time of its next use, or NEVER.

    Time counts these keys, from 0. The numbers can be read only within the context.
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
    """A `PrefixCache` that knows the future: `uses` come from `next_uses`, of the same requests and capacity.

    The leaves stand in a heap by their next use. An entry is void once its block is used, evicted, or a leaf no longer.
    Void entries are dropped when they come up, or all at once when the heap has more than three entries a block.
    """

    fallback = False

    def __init__(self, capacity: int, uses: Iterator[int]) -> None:
        self.capacity = capacity
        self.seconds = 0.0
        self._uses = uses
        self._next_use: dict[int, int] = {}  # When each of the cached keys is used next.
        self._parent: dict[int, int | None] = {}
        self._children: dict[int, int] = {}
        self._heap: list[tuple[int, int, int]] = []
        self._pushed = 0

    def serve(self, request: Request) -> int:
        """Serve one request and return its hits, which are counted as `Cache` counts them."""
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
        """Add the key to the heap of leaves, if it is a leaf."""
        if self._children[key]:
            return
        self._pushed += 1
        heappush(self._heap, (-self._next_use[key], self._pushed, key))
        if len(self._heap) > 3 * self.capacity + 64:
            leaves = (key for key in self._next_use if not self._children[key])
            self._heap = [(-self._next_use[key], number, key) for number, key in enumerate(leaves)]
            heapify(self._heap)

    def _evict(self, held: set[int]) -> None:
        """Evict the leaf with the furthest next use that is not in use, that is, not in `held`."""
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
