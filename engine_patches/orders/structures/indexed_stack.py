"""A stack of small ints from which any one can be taken out. Every operation is O(1)."""

from collections.abc import Iterator


class IndexedStack:
    """Numbers below `size`, each at most once; filled at the start, so that 0, 1, 2 ... come out first.

    To be read only, the same two lists for good: `stack`, and `place`: by number, its place there, -1 if it is not in
    it.
    """

    def __init__(self, size: int) -> None:
        self.stack = list(range(size - 1, -1, -1))
        self.place = list(range(size - 1, -1, -1))

    def __contains__(self, number: int) -> bool:
        return self.place[number] >= 0

    def add(self, number: int) -> None:
        self.place[number] = len(self.stack)
        self.stack.append(number)

    def remove(self, number: int) -> None:
        """The last one moves into the gap."""
        place, last = self.place[number], self.stack.pop()
        if last != number:
            self.stack[place] = last
            self.place[last] = place
        self.place[number] = -1

    def pop(self) -> int:
        number = self.stack.pop()
        self.place[number] = -1
        return number

    def walk(self, after: int | None = None) -> Iterator[int]:
        """As they would be popped; from behind `after` if given."""
        top = len(self.stack) if after is None else self.place[after]
        return (self.stack[place] for place in range(top - 1, -1, -1))
