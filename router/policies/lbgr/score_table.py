"""Scores as one array of numbers, for a policy that is asked at every request and looked at by few.

A decision needs the totals of all engines and the score of one. The rest is for those who ask why, and for the ledger,
which keeps numbers. So a Score is made only of an engine that is looked at; and numbers in an array, unlike a thousand
objects that wait for their request to end, are nothing to the garbage collector and little to the processor's caches.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Callable, Sequence

from router.types import PLAIN, Candidate, EngineId, Score, Scores, Unit


class ScoreTable(Scores):
    """terms: their names. places: of the candidates that were weighed, whose rows follow each other in `numbers`. All
    others were not worth it: their totals are infinite, and `weigh` makes the row of one that is looked at.

    A row: the PLAIN numbers, the terms, the features.
    """

    __slots__ = ("_candidates", "_latest", "_numbers", "_places", "_terms", "_weigh", "_width")

    def __init__(
        self,
        candidates: Sequence[Candidate],
        terms: tuple[str, ...],
        numbers: array[float],
        places: Sequence[int],
        weigh: Callable[[list[Candidate]], array[float]],
    ) -> None:
        self._candidates, self._terms, self._numbers, self._weigh = candidates, terms, numbers, weigh
        self._places, self._width, self.unit = places, len(numbers) // len(places), Unit.SECONDS
        self.totals_s: Sequence[float] = numbers[:: self._width].tolist()
        if len(places) < len(candidates):
            totals_s = [math.inf] * len(candidates)
            for place, total_s in zip(places, self.totals_s, strict=True):
                totals_s[place] = total_s
            self.totals_s = totals_s
        self._latest = 0

    @property
    def engines(self) -> list[EngineId]:
        return [view.engine for view, _ in self._candidates]

    @property
    def places(self) -> Sequence[int]:
        return self._places

    def engine(self, place: int) -> EngineId:
        return self._candidates[place].view.engine

    def place(self, engine: EngineId) -> int:
        # It is mostly the chosen one that is asked for, at its first token and at its end: no list of all for that.
        return self._latest if self.engine(self._latest) == engine else super().place(engine)

    def __getitem__(self, place: int) -> Score:
        begin, end = self._begin(place), PLAIN + len(self._terms)
        row = self._numbers[begin : begin + self._width]
        self._latest = place
        terms_s = dict(zip(self._terms, row[PLAIN:end], strict=True))
        return Score(self.engine(place), row[0], row[1], row[2], terms_s, tuple(row[end:]))

    def table(self, places: Sequence[int]) -> tuple[tuple[str, ...], array[float]]:
        numbers = array("d")
        if places == self._places:  # of all that were weighed, as of few engines: less than a row by row
            numbers, end = self._numbers[:], PLAIN + len(self._terms)
            for column in reversed(range(end, self._width)):
                del numbers[column :: column + 1]
            return self._terms, numbers
        for place in places:
            begin = self._begin(place)
            numbers += self._numbers[begin : begin + PLAIN + len(self._terms)]
        return self._terms, numbers

    def _begin(self, place: int) -> int:
        """Of its row, made if need be."""
        if not 0 <= place < len(self._candidates):
            raise IndexError(place)
        if place not in self._places:
            self._numbers += self._weigh([self._candidates[place]])
            self._places = [*self._places, place]
        return self._places.index(place) * self._width
