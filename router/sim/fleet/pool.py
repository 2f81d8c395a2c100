"""The prefix cache of one simulated engine: blocks under an eviction order, each with a count of its users.

The pool tells the order what vLLM's block pool tells it (`engine_patches.adapter`): hits at admission, a key for each
block that fills up, and the release of all blocks at the end, the deepest one first. Requests that compute the same
prefix side by side each keep a copy of their own.
"""

from __future__ import annotations

from collections.abc import Sequence

from engine_patches.orders import EvictionOrder
from router.types import BlockKey


class BlockPool:
    """A pool of as many blocks as the new `order` has. It holds an entry for each block and each key of a block."""

    def __init__(self, order: EvictionOrder) -> None:
        self.order, self.size = order, order.free
        self._users = [0] * self.size
        self._key_of: list[BlockKey | None] = [None] * self.size
        self._block_of: dict[BlockKey, int] = {}
        self._copies: dict[BlockKey, list[int]] = {}  # the further blocks of a key that several carry

    @property
    def free(self) -> int:
        """How many blocks no request uses."""
        return self.order.free

    def find(self, keys: Sequence[BlockKey], most: int) -> list[int]:
        """Return the blocks of the longest cached prefix of `keys`, at most `most` of them. Nothing changes."""
        found = []
        block = self._block_of.get
        for key in keys[:most]:
            number = block(key)
            if number is None:
                break
            found.append(number)
        return found

    def free_besides(self, hits: Sequence[int]) -> int:
        """Return how many blocks would be free if a request used `hits`."""
        users = self._users
        return self.order.free - sum([users[block] == 0 for block in hits])

    def use(self, hits: Sequence[int]) -> None:
        """One more request uses these cached blocks."""
        hit, users = self.order.hit, self._users
        for block in hits:
            hit(block)
            users[block] += 1

    def allocate(self, count: int) -> list[int]:
        """Evict what `count` free blocks hold and return them, in use by one request.

        Raises IndexError if fewer are free.
        """
        pop, users, keys = self.order.pop, self._users, self._key_of
        taken = []
        for _ in range(count):
            block = pop()
            assert users[block] == 0, "a block in use was evicted"
            users[block] = 1
            key = keys[block]
            if key is not None:
                keys[block] = None
                self._drop(key, block)
            taken.append(block)
        return taken

    def cache(self, blocks: Sequence[int], keys: Sequence[BlockKey], start: int, end: int) -> None:
        """The blocks of a request at the positions from `start` up to `end` are full now, and get their keys."""
        cache = self.order.cache
        parent = keys[start - 1] if start else None
        for position in range(start, end):
            block, key = blocks[position], keys[position]
            cache(block, key, parent, position)
            self._key_of[block] = parent = key
            if self._block_of.setdefault(key, block) != block:
                self._copies.setdefault(key, []).append(block)

    def release(self, blocks: Sequence[int]) -> None:
        """A request is over or was preempted. `blocks` are all that it used, the deepest one first."""
        users, keys = self._users, self._key_of
        kept: list[int] = []
        worthless: list[int] = []
        for block in blocks:
            users[block] -= 1
            if not users[block]:
                (worthless if keys[block] is None else kept).append(block)
        self.order.discard(worthless)
        self.order.release(kept)

    def _drop(self, key: BlockKey, block: int) -> None:
        copies = self._copies.get(key)
        if copies is None:
            del self._block_of[key]
            return
        if self._block_of[key] == block:
            self._block_of[key] = copies.pop()
        else:
            copies.remove(block)
        if not copies:
            del self._copies[key]
