"""Which engines hold which blocks, with one number for each: blocks of a path that were touched together share theirs.

    marks[key] = {number of an engine: what its index says of the block, a whole number}

Prompts share prefixes, so a path falls into few runs of blocks with the same marks (the same dictionary, not only an
equal one). One walk, a dictionary look-up a block, answers for all engines; all else is work for each run.

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


class BlockMap:
    """The marks of all blocks that some engine holds. Engines are numbers, given by the index."""

    def __init__(self) -> None:
        self._marks: dict[BlockKey, Marks] = {}

    def __len__(self) -> int:
        return len(self._marks)

    def marks(self, key: BlockKey) -> Marks:
        return self._marks.get(key, NOBODY)

    def walk(self, keys: Iterable[BlockKey]) -> list[Run]:
        """The whole path as runs; blocks that nobody holds are marked NOBODY."""
        runs: list[Run] = []
        before: Marks | None = None
        length = 0
        for marks in map(self._marks.get, keys):  # half of what a look-up in the loop costs
            if marks is not before:
                if length:
                    runs.append((NOBODY if before is None else before, length))
                before, length = marks, 0
            length += 1
        if length:
            runs.append((NOBODY if before is None else before, length))
        return runs

    def put(self, keys: Iterable[BlockKey], old: Marks, number: int, value: int) -> None:
        """The engine's number for a run, whose marks were `old`."""
        marks, new = self._marks, {**old, number: value}
        for key in keys:
            marks[key] = new

    def take(self, keys: Iterable[BlockKey], number: int) -> None:
        """The engine holds them no more, if it did."""
        marks = self._marks
        before: Marks = NOBODY
        after: dict[int, int] = {}
        for key in keys:
            old = marks.get(key, NOBODY)
            if number not in old:
                continue
            if old is not before:
                before, after = old, {n: value for n, value in old.items() if n != number}
            if after:
                marks[key] = after
            else:
                del marks[key]

    def drain(self, keys: list[BlockKey], number: int, value: int, most: int) -> int:
        """The same of up to `most` of the last of the blocks, as far as they are marked with just this; how many. The
        list is left without them."""
        marks, gone = self._marks, 0
        before, left, mine = NOBODY, NOBODY, False  # a run's marks, what is left of them, whether they are just this
        while keys and gone < most:
            key = keys.pop()
            old = marks.get(key, NOBODY)
            if old is not before:
                before, mine = old, old.get(number) == value
                left = {n: mark for n, mark in old.items() if n != number} if mine else NOBODY
            if not mine:
                continue
            gone += 1
            if left:
                marks[key] = left
            else:
                del marks[key]
        return gone

    def held(self, keys: Sequence[BlockKey], number: int, value: int) -> list[BlockKey]:
        """Those of the blocks of which the engine's index says just this."""
        get = self._marks.get
        return [key for key in keys if get(key, NOBODY).get(number) == value]
