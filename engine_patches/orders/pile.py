"""A stack of small ints from which any one can be taken out. Every operation is O(1)."""

from collections.abc import Iterator


class Pile:
    """Numbers below `size`, each at most once; filled at the start, so that 0, 1, 2 ... come out first."""

    def __init__(self, size: int) -> None:
        self._stack = list(range(size - 1, -1, -1))
        self._place = list(range(size - 1, -1, -1))  # by number; -1: not here

    def __contains__(self, number: int) -> bool:
        return self._place[number] >= 0

    def __bool__(self) -> bool:
        return bool(self._stack)

    def add(self, number: int) -> None:
        self._place[number] = len(self._stack)
        self._stack.append(number)

    def remove(self, number: int) -> None:
        """The last one moves into the gap."""
        place, last = self._place[number], self._stack.pop()
        if last != number:
            self._stack[place] = last
            self._place[last] = place
        self._place[number] = -1

    def pop(self) -> int:
        number = self._stack.pop()
        self._place[number] = -1
        return number

    def walk(self, after: int | None = None) -> Iterator[int]:
        """As they would be popped; from behind `after` if given."""
        top = len(self._stack) if after is None else self._place[after]
        return (self._stack[place] for place in range(top - 1, -1, -1))
