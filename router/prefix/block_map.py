"""Which engines hold which blocks.

    marks[key] = {number of an engine: the engine's mark of the block, a whole number}

An engine that holds a block has a mark on it. What the number means is up to the index that the engine is in: `lru`
writes the touch that the block belongs to, `survival` the generation of its last touch or how many requests hold it.

A path is a prompt as its sequence of block keys. Blocks of a path that were touched together share their marks (the
same dictionary, not only an equal one), so a path falls into few runs of blocks with the same marks. One walk along the
path, with one dictionary look-up for each block, answers for all engines; all other work is done once for each run. To
choose an engine, the walk goes no further than to the first block that nobody holds (`held_runs`), and when the rest of
the path is put in, one look-up finds each block free and marks it (`claim`).

The keys are spread over SHARDS dictionaries. A dictionary that outgrows its table is copied as a whole, and for a
million keys that stops the gateway for 80 ms; for one of 16 parts, for 7 ms. It adds 0.05 us to each look-up.

Memory: about 100 bytes for each block with its key, and about 250 bytes for the marks of each run.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType

from router.types import BlockKey

Marks = Mapping[int, int]
"""The marks of a block by engine number. Runs share them, so they are never changed in place."""
Run = tuple[Marks, int]
"""A stretch of a path: (the marks that its blocks share, the number of its blocks)."""
NOBODY: Marks = MappingProxyType({})
"""The marks of a block that no engine holds."""

SHARDS = 16  # a power of two; keys are hashes, so their lowest bits are spread evenly
SHARD_MASK = SHARDS - 1


class BlockMap:
    """The marks of all blocks that some engine holds. The owner gives each engine its number."""

    def __init__(self) -> None:
        self._shards: list[dict[BlockKey, Marks]] = [{} for _ in range(SHARDS)]
        self._gets = tuple([shard.get for shard in self._shards])
        self._set_defaults = tuple([shard.setdefault for shard in self._shards])

    def __len__(self) -> int:
        return sum(map(len, self._shards))

    def marks(self, key: BlockKey) -> Marks:
        return self._gets[key & SHARD_MASK](key) or NOBODY

    def held_runs(self, keys: Sequence[BlockKey]) -> list[Run]:
        """The path as runs, up to the first block that no engine holds."""
        gets, runs, begin, end = self._gets, list[Run](), 0, 0
        before: Marks | None = None
        for end, key in enumerate(keys):
            marks = gets[key & SHARD_MASK](key)
            if marks is not before:
                if before is not None:
                    runs.append((before, end - begin))
                before, begin = marks, end
            if marks is None:
                return runs
        if before is not None:
            runs.append((before, end + 1 - begin))
        return runs

    def walk(self, keys: Sequence[BlockKey]) -> list[Run]:
        """The whole path as runs; blocks that no engine holds have the marks NOBODY."""
        gets, runs, begin, end = self._gets, list[Run](), 0, 0
        before: Marks | None = None
        for end, key in enumerate(keys):
            marks = gets[key & SHARD_MASK](key)
            if marks is not before:
                if end:
                    runs.append((NOBODY if before is None else before, end - begin))
                before, begin = marks, end
        if keys:
            runs.append((NOBODY if before is None else before, end + 1 - begin))
        return runs

    def put(self, keys: Iterable[BlockKey], old: Marks, number: int, value: int) -> None:
        """Set the engine's mark of all blocks of a run to `value`. `old`: the marks that the run has now."""
        shards, new = self._shards, {**old, number: value}
        for key in keys:
            shards[key & SHARD_MASK][key] = new

    def claim(self, keys: Iterable[BlockKey], number: int, value: int) -> int:
        """Set the engine's mark of the first blocks, up to the first one that some engine holds. Returns how many."""
        set_defaults, new, claimed = self._set_defaults, {number: value}, 0
        for claimed, key in enumerate(keys, 1):
            if set_defaults[key & SHARD_MASK](key, new) is not new:
                return claimed - 1
        return claimed

    def take(self, keys: Iterable[BlockKey], number: int) -> None:
        """Remove the engine's mark from those of the blocks that have one."""
        shards = self._shards
        before: Marks = NOBODY
        after: dict[int, int] = {}
        for key in keys:
            shard = shards[key & SHARD_MASK]
            old = shard.get(key, NOBODY)
            if number not in old:
                continue
            if old is not before:
                before, after = old, {n: value for n, value in old.items() if n != number}
            if after:
                shard[key] = after
            else:
                del shard[key]

    def drain(self, keys: list[BlockKey], number: int, value: int, limit: int) -> int:
        """Remove the engine's mark from at most `limit` blocks at the end of `keys` whose mark equals `value`. Every
        block that was looked at is removed from `keys`. Returns how many marks were removed."""
        shards, removed = self._shards, 0
        # For the run that the last block belonged to: its marks, the marks that are left of them without the engine's,
        # and whether the engine's mark equals `value`.
        before, left, matches = NOBODY, NOBODY, False
        while keys and removed < limit:
            last = keys[removed - limit :]
            del keys[removed - limit :]
            for key in last:
                shard = shards[key & SHARD_MASK]
                old = shard.get(key, NOBODY)
                if old is not before:
                    before, matches = old, old.get(number) == value
                    left = {n: mark for n, mark in old.items() if n != number} if matches else NOBODY
                if matches:
                    removed += 1
                    if left:
                        shard[key] = left
                    else:
                        del shard[key]
        return removed

    def held(self, keys: Sequence[BlockKey], number: int, value: int) -> list[BlockKey]:
        """Those of `keys` on which the engine's mark equals `value`, in their order."""
        gets = self._gets
        return [key for key in keys if (gets[key & SHARD_MASK](key) or NOBODY).get(number) == value]
