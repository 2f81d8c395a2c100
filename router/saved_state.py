"""Learned state read back from JSON: every value is checked before anything is made of it.

What learners dump are JSON types only; what they load comes from a file that anyone may have edited or cut short.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from router.errors import SnapshotError

SavedState = dict[str, object]
"""What `dump` gives: JSON types, finite numbers."""


class SavedFields:
    """A JSON object. All methods raise SnapshotError, which names the place, for what is missing or of another kind."""

    def __init__(self, value: object, place: str) -> None:
        if not isinstance(value, dict):
            raise SnapshotError(place, value, "an object")
        self._value: dict[str, object] = value
        self._place = place

    def __contains__(self, key: str) -> bool:
        return key in self._value

    def __iter__(self) -> Iterator[str]:
        return iter(self._value)

    def fields(self, key: str) -> SavedFields:
        return SavedFields(self._value.get(key), self._at(key))

    def number(self, key: str, *, low: float = -math.inf, high: float = math.inf) -> float:
        return number(self._value.get(key), self._at(key), low, high)

    def integer(self, key: str) -> int:
        """Of at least 0."""
        value = self.number(key, low=0.0)
        if value != int(value):
            raise SnapshotError(self._at(key), value, "an integer")
        return int(value)

    def flag(self, key: str) -> bool:
        value = self._value.get(key)
        if not isinstance(value, bool):
            raise SnapshotError(self._at(key), value, "true or false")
        return value

    def text(self, key: str) -> str:
        value = self._value.get(key)
        if not isinstance(value, str):
            raise SnapshotError(self._at(key), value, "text")
        return value

    def numbers(self, key: str, count: int, *, low: float = -math.inf) -> list[float]:
        return numbers(self._value.get(key), self._at(key), count, low)

    def rows(self, key: str, count: int, *, low: float = -math.inf) -> list[list[float]]:
        """A square of numbers."""
        rows = self.items(key, count)
        if len(rows) != count:
            raise SnapshotError(self._at(key), self._value[key], f"a list of {count}")
        return [numbers(row, place, count, low) for place, row in rows]

    def items(self, key: str, most: int) -> list[tuple[str, object]]:
        """(place, value) of a list."""
        values, place = self._value.get(key), self._at(key)
        if not isinstance(values, list) or len(values) > most:
            raise SnapshotError(place, values, f"a list of at most {most}")
        return [(f"{place}[{n}]", value) for n, value in enumerate(values)]

    def same(self, key: str, expected: object) -> None:
        """Whether it was saved of the same thing."""
        if self._value.get(key) != expected:
            raise SnapshotError(self._at(key), self._value.get(key), f"{expected!r}, as this version has it")

    def _at(self, key: str) -> str:
        return f"{self._place}.{key}"


def number(value: object, place: str, low: float = -math.inf, high: float = math.inf) -> float:
    """A finite one. Raises SnapshotError."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise SnapshotError(place, value, "a number")
    if not low <= value <= high or abs(value) > 1e300:
        raise SnapshotError(place, value, "a finite number" if low == -high else f"a number from {low:g} to {high:g}")
    return float(value)


def numbers(value: object, place: str, count: int, low: float = -math.inf) -> list[float]:
    """So many finite ones. Raises SnapshotError."""
    if not isinstance(value, list) or len(value) != count:
        raise SnapshotError(place, value, f"a list of {count}")
    return [number(each, f"{place}[{n}]", low) for n, each in enumerate(value)]
