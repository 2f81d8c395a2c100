"""What a policy makes of the candidates for one request: numbers in rows, and a score with names made of a row.

A decision needs all totals and the score of one engine. The rest is for those who ask why, and for the decision log,
which keeps numbers. Numbers in an array, unlike a thousand objects that wait for their request to end, are nothing to
the garbage collector and little to the processor's caches. Nothing is computed when a table is read.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterator, Mapping, Sequence
from enum import StrEnum
from types import MappingProxyType
from typing import NamedTuple

from router.types.engine import Candidate, EngineId

PLAIN = 4
"""Numbers of a row before its terms: total, predicted_s, hit_tokens, slowness; nan: there is none."""


class Unit(StrEnum):
    """What a total counts."""

    SECONDS = "s"
    RANK = "rank"  # of any scale: the lower goes first, and nothing else is meant by it


class Score(NamedTuple):
    """One engine's cost for a request, term by term; the lowest `total` gets the request."""

    engine: EngineId
    total: float
    unit: Unit
    predicted_s: float | None
    """Predicted end-to-end latency, seconds; None from policies that predict none."""
    hit_tokens: float
    slowness: float | None = None
    """What the engine's times were multiplied by; None from policies that do not tell engines apart."""
    terms: Mapping[str, float] = MappingProxyType({})
    """The parts of the total, in its unit."""
    features: tuple[float, ...] = ()
    """What the policy saw of the engine (`features.Features` for lbgr); it learns from it at completion."""


class Scores:
    """The scores of the candidates that a policy weighed, in their order.

    rows: for each of them the PLAIN numbers, one number for each of `terms`, then the features, all rows of one length.
    eligible: how many candidates there were, those not weighed included.
    """

    __slots__ = ("_candidates", "_rows", "_width", "eligible", "terms", "totals", "unit")

    def __init__(
        self,
        candidates: Sequence[Candidate],
        rows: array[float],
        unit: Unit,
        terms: tuple[str, ...] = (),
        eligible: int | None = None,
    ) -> None:
        self._candidates, self._rows, self.unit, self.terms = candidates, rows, unit, terms
        self._width = len(rows) // len(candidates) if candidates else PLAIN
        self.eligible = len(candidates) if eligible is None else eligible
        self.totals: list[float] = rows[:: self._width].tolist()

    def __len__(self) -> int:
        return len(self.totals)

    def __iter__(self) -> Iterator[Score]:
        return (self[place] for place in range(len(self)))

    def __getitem__(self, place: int) -> Score:
        """Of the candidate at that place. Raises IndexError."""
        if not 0 <= place < len(self.totals):
            raise IndexError(place)
        begin, end = place * self._width, PLAIN + len(self.terms)
        row = self._rows[begin : begin + self._width]
        terms = dict(zip(self.terms, row[PLAIN:end], strict=True))
        features = tuple(row[end:])
        return Score(self.engine(place), row[0], self.unit, _told(row[1]), row[2], _told(row[3]), terms, features)

    def __eq__(self, other: object) -> bool:
        """To the bit, as no number equals nan."""
        if not isinstance(other, Scores):
            return NotImplemented
        mine, theirs = (self.unit, self.terms, self.engines), (other.unit, other.terms, other.engines)
        return mine == theirs and self._rows.tobytes() == other._rows.tobytes()

    __hash__ = None  # type: ignore[assignment]

    @property
    def engines(self) -> list[EngineId]:
        """Of the candidates weighed, in their order."""
        return [view.engine for view, _ in self._candidates]

    def engine(self, place: int) -> EngineId:
        return self._candidates[place].view.engine

    def find(self, engine: EngineId) -> Score | None:
        """An engine's score; None if it was not weighed."""
        for place, (view, _) in enumerate(self._candidates):
            if view.engine == engine:
                return self[place]
        return None

    def table(self, places: Sequence[int]) -> array[float]:
        """For each place its PLAIN numbers, then one for each of `terms`."""
        end = PLAIN + len(self.terms)
        if len(places) == len(self):  # of all: less work by the column than by the row
            numbers = self._rows[:]
            for column in reversed(range(end, self._width)):
                del numbers[column :: column + 1]
            return numbers
        numbers = array("d")
        for place in places:
            begin = place * self._width
            numbers += self._rows[begin : begin + end]
        return numbers


def _told(number: float) -> float | None:
    return None if math.isnan(number) else number
