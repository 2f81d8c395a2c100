"""The scores that a policy gives the candidates for one request: rows of numbers, and a `Score` made of one row.

A decision needs all totals and the score of one engine. The other numbers are for explanations and for the decision
log. They are kept in one array, because a thousand objects that wait for their requests to end would cost the garbage
collector and the processor's caches much more. Reading scores computes nothing.
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
"""How many numbers a row has before its terms: total, predicted_s, hit_tokens and slowness. nan stands for None."""


class Unit(StrEnum):
    """The unit of a total."""

    SECONDS = "s"
    RANK = "rank"  # a number of any scale that only orders the engines: the lowest is the best


class Score(NamedTuple):
    """The cost of a request on one engine, term by term. The engine with the lowest `total` gets the request."""

    engine: EngineId
    total: float
    unit: Unit
    predicted_s: float | None
    """The predicted end-to-end latency; None from policies that predict none."""
    hit_tokens: float
    slowness: float | None = None
    """The factor by which the engine's times were multiplied; None from policies that do not tell engines apart."""
    terms: Mapping[str, float] = MappingProxyType({})
    """The parts of the total by name, in its unit."""
    features: tuple[float, ...] = ()
    """What the policy measured of the engine and learns from at completion; for lbgr: `policies.lbgr.cost.Features`."""


class Scores:
    """The scores of the candidates that a policy weighed, in the order of the candidates.

    rows: one row for each candidate, all of the same length: the PLAIN numbers, one number for each of `terms`, then
    the features. eligible: the number of candidates, including those that the policy did not weigh.
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
        """The score of the candidate at that place. Raises IndexError."""
        if not 0 <= place < len(self.totals):
            raise IndexError(place)
        begin, end = place * self._width, PLAIN + len(self.terms)
        row = self._rows[begin : begin + self._width]
        terms = dict(zip(self.terms, row[PLAIN:end], strict=True))
        features = tuple(row[end:])
        predicted_s, slowness = _none_if_nan(row[1]), _none_if_nan(row[3])
        return Score(self.engine(place), row[0], self.unit, predicted_s, row[2], slowness, terms, features)

    def __eq__(self, other: object) -> bool:
        """Compare the numbers by their bits, because nan equals nothing, not even itself."""
        if not isinstance(other, Scores):
            return NotImplemented
        mine, theirs = (self.unit, self.terms, self.engines), (other.unit, other.terms, other.engines)
        return mine == theirs and self._rows.tobytes() == other._rows.tobytes()

    __hash__ = None  # type: ignore[assignment]

    @property
    def engines(self) -> list[EngineId]:
        """The engines of the weighed candidates, in their order."""
        return [view.engine for view, _ in self._candidates]

    def engine(self, place: int) -> EngineId:
        return self._candidates[place].view.engine

    def find(self, engine: EngineId) -> Score | None:
        """The score of an engine; None if the policy did not weigh it."""
        for place, (view, _) in enumerate(self._candidates):
            if view.engine == engine:
                return self[place]
        return None

    def table(self, places: Sequence[int]) -> array[float]:
        """One row for each place, without the features: the PLAIN numbers, then one for each of `terms`."""
        end = PLAIN + len(self.terms)
        if len(places) == len(self):  # all rows are wanted: deleting columns is less work than copying rows
            numbers = self._rows[:]
            for column in reversed(range(end, self._width)):
                del numbers[column :: column + 1]
            return numbers
        numbers = array("d")
        for place in places:
            begin = place * self._width
            numbers += self._rows[begin : begin + end]
        return numbers


def _none_if_nan(number: float) -> float | None:
    return None if math.isnan(number) else number
