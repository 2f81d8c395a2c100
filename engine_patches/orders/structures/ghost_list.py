"""A ghost list: evicted keys that are remembered for a while, with one int of state each, first in first out."""

from collections import deque

from engine_patches.orders.base import Key

_BITS = 48
_MASK = (1 << _BITS) - 1


class GhostList:
    """At most `capacity` keys, each with a `state` from 0 to 2**48 - 1. Every operation is O(1), `add` amortised.

    A key that is popped leaves its place in the queue behind, empty. The upper bits of a key's entry hold the number of
    its present place, which tells it from such empty ones. The queue never has more than 2 `capacity` places.
    """

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._entries: dict[Key, int] = {}
        self._queue: deque[Key] = deque()
        self._first = 0  # number of the queue's first place

    def __len__(self) -> int:
        return len(self._entries)

    def add(self, key: Key, state: int) -> int:
        """Remember `key`, which is not in the list. Return the state of the key that is forgotten for it, or -1."""
        entries, queue = self._entries, self._queue
        entries[key] = (self._first + len(queue)) << _BITS | state
        queue.append(key)
        while len(entries) > self._capacity or len(queue) > 2 * self._capacity:
            oldest = queue.popleft()
            entry = entries.get(oldest, -1)
            self._first += 1
            if entry >> _BITS == self._first - 1:
                del entries[oldest]
                return entry & _MASK
        return -1

    def pop(self, key: Key) -> int:
        """Forget `key` and return its state, or -1 if it is not in the list."""
        entry = self._entries.pop(key, -1)
        return entry if entry < 0 else entry & _MASK
