"""The cache of one simulated engine: blocks under an eviction order, counted by the requests that use them.

It tells the order what vLLM's block pool tells it (`engine_patches.adapter`): hits at admission, a key for each block
that fills up, all blocks given back at the end, the deepest first. Requests that compute one prefix side by side each
keep their copy.
"""

from __future__ import annotations

from collections.abc import Sequence

from engine_patches.orders import EvictionOrder
from router.types import BlockKey


class BlockPool:
    """As large as the new `order`. Holds an entry for each block and for each key that a block carries."""

    def __init__(self, order: EvictionOrder) -> None:
        self.order, self.size = order, order.free
        self._users = [0] * self.size
        self._key_of: list[BlockKey | None] = [None] * self.size
        self._block_of: dict[BlockKey, int] = {}
        self._copies: dict[BlockKey, list[int]] = {}  # of a key that several blocks carry, those beside `_block_of`

    @property
    def free(self) -> int:
        """Blocks that no request uses."""
        return self.order.free

    def find(self, keys: Sequence[BlockKey], most: int) -> list[int]:
        """The blocks of the longest cached prefix, `most` at most. Changes nothing."""
        found = []
        block = self._block_of.get
        for key in keys[:most]:
            number = block(key)
            if number is None:
                break
            found.append(number)
        return found

    def free_besides(self, hits: Sequence[int]) -> int:
        """Blocks that are free once a request uses `hits`."""
        users = self._users
        return self.order.free - sum([users[block] == 0 for block in hits])

    def use(self, hits: Sequence[int]) -> None:
        hit, users = self.order.hit, self._users
        for block in hits:
            hit(block)
            users[block] += 1

    def allocate(self, count: int) -> list[int]:
        """So many new blocks, in use, what they held evicted. There must be room."""
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
        """The blocks at positions `start` to `end` of a request are full now and get their keys."""
        cache = self.order.cache
        parent = keys[start - 1] if start else None
        for position in range(start, end):
            block, key = blocks[position], keys[position]
            cache(block, key, parent, position)
            self._key_of[block] = parent = key
            if self._block_of.setdefault(key, block) != block:
                self._copies.setdefault(key, []).append(block)

    def release(self, blocks: Sequence[int]) -> None:
        """A request is over, or was preempted. blocks: all it used, the deepest first."""
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
