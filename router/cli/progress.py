"""What the terminal sees of a command that takes its time: lines as they come, and how far it is."""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from typing import TextIO, TypeVar

R = TypeVar("R")
Watch = Callable[[Sequence[float]], None]


def show(lines_of: Callable[[Watch], Generator[tuple[str, R], None, None]]) -> list[R]:
    """Prints the lines one by one; what came with them. `lines_of` is given what it tells the progress to."""
    progress = Progress(sys.stderr)
    shown: list[R] = []
    try:
        with closing(lines_of(progress.show)) as lines:
            for line, what in lines:
                progress.clear()
                print(line, flush=True)
                shown.append(what)
    except BrokenPipeError:  # the reader, `head` perhaps, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    finally:
        progress.clear()
    return shown


class Progress:
    """A line that says how far it is, on a terminal only, once a run takes longer than a moment."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._start = time.monotonic()
        self._next = self._start + 1.0 if stream.isatty() else math.inf
        self._drawn = False

    def show(self, parts: Sequence[float]) -> None:
        """`parts`: of each run, the part that is done."""
        now = time.monotonic()
        if now < self._next:
            return
        self._next = now + 0.2
        done = sum(parts)
        left_s = (now - self._start) * (len(parts) - done) / done if done else math.inf
        left = f", {left_s:.0f} s left" if left_s < math.inf else ""
        bar = ("#" * int(24 * done / len(parts))).ljust(24, ".")
        self._stream.write(f"\r\033[K[{bar}] {int(done)} of {len(parts)} runs{left}")
        self._stream.flush()
        self._drawn = True

    def clear(self) -> None:
        if self._drawn:
            self._stream.write("\r\033[K")
            self._stream.flush()
            self._drawn = False
