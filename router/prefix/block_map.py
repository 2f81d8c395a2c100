"""Which engines hold which blocks, with one number for each: blocks of a path that were touched together share theirs.

    marks[key] = {number of an engine: what the engine's index says of the block, a whole number}

Prompts share prefixes, so a path falls into few runs of blocks with the same marks (the same dictionary, not only an
equal one). One walk, a dictionary look-up a block, answers for all engines; all else is work for each run.

The keys are spread over SHARDS dictionaries: a dictionary that grows is built anew at once, and for a million keys that
stops the gateway for 80 ms. That costs 0.05 us for each look-up of a block.

Memory: an entry a block, about 100 bytes with its key, and about 250 for each run's marks.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType

from router.types import BlockKey

Marks = Mapping[int, int]
"""By engine number. Shared, so never changed in place."""
Run = tuple[Marks, int]
"""A stretch of a path: so many blocks with the same marks."""
NOBODY: Marks = MappingProxyType({})

SHARDS = 16  # a power of two; keys are hashes, so their lowest bits are spread evenly
LAST = SHARDS - 1


class BlockMap:
    """The marks of all blocks that some engine holds. Engines are numbers, given by the owner."""

    def __init__(self) -> None:
        self._shards: list[dict[BlockKey, Marks]] = [{} for _ in range(SHARDS)]
        self._gets = tuple([shard.get for shard in self._shards])

    def __len__(self) -> int:
        return sum(map(len, self._shards))

    def marks(self, key: BlockKey) -> Marks:
        return self._gets[key & LAST](key) or NOBODY

    def walk(self, keys: Sequence[BlockKey]) -> list[Run]:
        """The whole path as runs; blocks that nobody holds are marked NOBODY."""
        gets, runs, begin, end = self._gets, list[Run](), 0, 0
        before: Marks | None = None
        for end, key in enumerate(keys):
            marks = gets[key & LAST](key)
            if marks is not before:
                if end:
                    runs.append((NOBODY if before is None else before, end - begin))
                before, begin = marks, end
        if keys:
            runs.append((NOBODY if before is None else before, end + 1 - begin))
        return runs

    def put(self, keys: Iterable[BlockKey], old: Marks, number: int, value: int) -> None:
        """Mark the blocks of a run, whose marks were `old`, with the engine's value."""
        shards, new = self._shards, {**old, number: value}
        for key in keys:
            shards[key & LAST][key] = new

    def take(self, keys: Iterable[BlockKey], number: int) -> None:
        """Remove the engine's mark from the blocks that carry one."""
        shards = self._shards
        before: Marks = NOBODY
        after: dict[int, int] = {}
        for key in keys:
            shard = shards[key & LAST]
            old = shard.get(key, NOBODY)
            if number not in old:
                continue
            if old is not before:
                before, after = old, {n: value for n, value in old.items() if n != number}
            if after:
                shard[key] = after
            else:
                del shard[key]

    def drain(self, keys: list[BlockKey], number: int, value: int, most: int) -> int:
        """Remove the engine's mark from at most `most` blocks at the end of `keys` whose mark equals `value`, and cut
        the list behind the last block that was looked at. Returns how many marks were removed."""
        shards, gone = self._shards, 0
        before, left, mine = NOBODY, NOBODY, False  # a run's marks, what is left of them, whether they equal `value`
        while keys and gone < most:
            last = keys[gone - most :]
            del keys[gone - most :]
            for key in last:
                shard = shards[key & LAST]
                old = shard.get(key, NOBODY)
                if old is not before:
                    before, mine = old, old.get(number) == value
                    left = {n: mark for n, mark in old.items() if n != number} if mine else NOBODY
                if mine:
                    gone += 1
                    if left:
                        shard[key] = left
                    else:
                        del shard[key]
        return gone

    def held(self, keys: Sequence[BlockKey], number: int, value: int) -> list[BlockKey]:
        """Those of the blocks whose mark of the engine equals `value`."""
        gets = self._gets
        return [key for key in keys if (gets[key & LAST](key) or NOBODY).get(number) == value]
