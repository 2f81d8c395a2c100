"""Checks of learned state that is read back from JSON.

Learners dump JSON types only. What they load comes from a file that anyone may have edited or cut short, so each value
is checked before it is used.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from router.errors import SnapshotError

SavedState = dict[str, object]
"""What a `dump` method returns: JSON types only, and all numbers finite."""


class SavedFields:
    """The fields of a JSON object.

    Every method raises SnapshotError for a value that is missing or of another kind. The error names its place.
    """

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
        """An integer of at least 0."""
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
        """A square matrix of numbers: `count` rows of `count`."""
        rows = self.items(key, count)
        if len(rows) != count:
            raise SnapshotError(self._at(key), self._value[key], f"a list of {count}")
        return [numbers(row, place, count, low) for place, row in rows]

    def items(self, key: str, max_items: int) -> list[tuple[str, object]]:
        """The items of a list that has at most `max_items`, each as (place, value)."""
        values, place = self._value.get(key), self._at(key)
        if not isinstance(values, list) or len(values) > max_items:
            raise SnapshotError(place, values, f"a list of at most {max_items}")
        return [(f"{place}[{n}]", value) for n, value in enumerate(values)]

    def same(self, key: str, expected: object) -> None:
        """Require that the saved value equals `expected`, such as a version or the names of coefficients."""
        if self._value.get(key) != expected:
            raise SnapshotError(self._at(key), self._value.get(key), f"{expected!r}, as this version has it")

    def _at(self, key: str) -> str:
        return f"{self._place}.{key}"


def number(value: object, place: str, low: float = -math.inf, high: float = math.inf) -> float:
    """Return `value` as a float if it is a finite number from `low` to `high`. Raises SnapshotError."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise SnapshotError(place, value, "a number")
    if not low <= value <= high or abs(value) > 1e300:
        raise SnapshotError(place, value, "a finite number" if low == -high else f"a number from {low:g} to {high:g}")
    return float(value)


def numbers(value: object, place: str, count: int, low: float = -math.inf) -> list[float]:
    """Return `value` if it is a list of `count` finite numbers of at least `low`. Raises SnapshotError."""
    if not isinstance(value, list) or len(value) != count:
        raise SnapshotError(place, value, f"a list of {count}")
    return [number(each, f"{place}[{n}]", low) for n, each in enumerate(value)]
