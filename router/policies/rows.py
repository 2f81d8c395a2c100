"""Scores as one array of numbers, for a policy that is asked at every request and looked at by few.

A decision needs the totals of all engines and the score of one. The rest is for those who ask why, and for the ledger,
which keeps numbers. So a Score is made only of an engine that is looked at; and numbers in an array, unlike a thousand
objects that wait for their request to end, are nothing to the garbage collector and little to the processor's caches.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Callable, Sequence

from router.types import Candidate, EngineId, Score, Scores

PLAIN = 4
"""A row: total_s, predicted_s, hit_tokens, scale; the terms; the features."""


class Rows(Scores):
    """terms: their names. places: of the candidates that were weighed, whose rows follow each other in `numbers`. All
    others were not worth it: their totals are infinite, and `weigh` makes the row of one that is looked at."""

    __slots__ = ("_candidates", "_numbers", "_places", "_terms", "_weigh")

    def __init__(
        self,
        candidates: Sequence[Candidate],
        terms: tuple[str, ...],
        numbers: array[float],
        places: Sequence[int],
        weigh: Callable[[list[Candidate]], array[float]],
    ) -> None:
        self._candidates, self._terms, self._numbers, self._weigh = candidates, terms, numbers, weigh
        self._places = places
        self.totals_s: Sequence[float] = numbers[:: len(numbers) // len(places)]
        if len(places) < len(candidates):
            weighed = dict(zip(places, self.totals_s, strict=True))
            self.totals_s = [weighed.get(place, math.inf) for place in range(len(candidates))]

    @property
    def engines(self) -> list[EngineId]:
        return [view.engine for view, _ in self._candidates]

    def __getitem__(self, place: int) -> Score:
        row, end = self._row(place), PLAIN + len(self._terms)
        terms_s = dict(zip(self._terms, row[PLAIN:end], strict=True))
        return Score(self._candidates[place].view.engine, row[0], row[1], row[2], terms_s, tuple(row[end:]))

    def table(self, places: Sequence[int]) -> tuple[tuple[str, ...], array[float]]:
        numbers = array("d")
        for place in places:
            numbers += self._row(place)[: PLAIN + len(self._terms)]
        return self._terms, numbers

    def _row(self, place: int) -> array[float]:
        if not 0 <= place < len(self._candidates):
            raise IndexError(place)
        width = len(self._numbers) // len(self._places)
        if place not in self._places:
            self._numbers += self._weigh([self._candidates[place]])
            self._places = [*self._places, place]
        begin = self._places.index(place) * width
        return self._numbers[begin : begin + width]
