"""A stack of distinct small ints from which any one can be removed. Every operation is O(1)."""

from collections.abc import Iterator


class IndexedStack:
    """A stack of numbers below `size`. It starts full, so that 0, 1, 2 ... are popped first.

    `stack` holds the numbers, the next one to pop last. `index_of[number]` is the number's index in `stack`, or -1 if
    it is not there. Both lists may be read from outside (they are never replaced), but only the methods may change
    them.
    """

    def __init__(self, size: int) -> None:
        self.stack = list(range(size - 1, -1, -1))
        self.index_of = list(range(size - 1, -1, -1))

    def __contains__(self, number: int) -> bool:
        return self.index_of[number] >= 0

    def add(self, number: int) -> None:
        """Push `number`, which is not in the stack."""
        self.index_of[number] = len(self.stack)
        self.stack.append(number)

    def remove(self, number: int) -> None:
        """Remove `number`, which is in the stack. The number on top moves into the gap."""
        index, last = self.index_of[number], self.stack.pop()
        if last != number:
            self.stack[index] = last
            self.index_of[last] = index
        self.index_of[number] = -1

    def pop(self) -> int:
        """Remove and return the number on top. IndexError if the stack is empty."""
        number = self.stack.pop()
        self.index_of[number] = -1
        return number

    def walk(self, after: int | None = None) -> Iterator[int]:
        """Yield the numbers in the order in which they would be popped, starting behind `after` if it is given."""
        top = len(self.stack) if after is None else self.index_of[after]
        return (self.stack[index] for index in range(top - 1, -1, -1))
