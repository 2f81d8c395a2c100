"""Evicted keys that are remembered: what was known of them, in one int each, first in first out."""

from collections import deque

from engine_patches.orders.base import Key

_BITS = 48
_MASK = (1 << _BITS) - 1


class Ghosts:
    """At most `cap` keys. `state` is an int below 2**48. Every operation is O(1), `add` amortised.

    A key that returns leaves its place in the queue behind; a number in the upper bits of a key's entry tells its
    present place from such ones. The queue is kept to 2 `cap` places.
    """

    def __init__(self, cap: int) -> None:
        self._cap = cap
        self._entries: dict[Key, int] = {}
        self._queue: deque[Key] = deque()
        self._first = 0  # number of the queue's first place

    def __len__(self) -> int:
        return len(self._entries)

    def add(self, key: Key, state: int) -> int:
        """Remembers a key that is not among them. The state of the one that is forgotten for it, or -1."""
        entries, queue = self._entries, self._queue
        entries[key] = (self._first + len(queue)) << _BITS | state
        queue.append(key)
        while len(entries) > self._cap or len(queue) > 2 * self._cap:
            oldest = queue.popleft()
            entry = entries.get(oldest, -1)
            self._first += 1
            if entry >> _BITS == self._first - 1:
                del entries[oldest]
                return entry & _MASK
        return -1

    def take(self, key: Key) -> int:
        """The state of a key that returns, which is forgotten here; -1 if it is not remembered."""
        entry = self._entries.pop(key, -1)
        return entry if entry < 0 else entry & _MASK
