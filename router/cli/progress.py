"""What a command that takes its time shows on the terminal: lines as they come, and how far the runs are."""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from typing import TextIO, TypeVar

from router.sim.parallel import Watch

R = TypeVar("R")


def show(lines_of: Callable[[Watch], Generator[tuple[str, R], None, None]]) -> list[R]:
    """Print lines one by one as they come, and return what came with them.

    `lines_of` is called with the function that it reports its progress to, and gives each line with what it shows.
    """
    progress = Progress(sys.stderr)
    shown: list[R] = []
    try:
        with closing(lines_of(progress.show)) as lines:
            for line, what in lines:
                progress.clear()
                print(line, flush=True)
                shown.append(what)
    except BrokenPipeError:  # The reader, perhaps `head`, has seen enough.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    finally:
        progress.clear()
    return shown


class Progress:
    """A line that says how far the runs are. It is drawn on terminals only, and not before a second has passed."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._start = time.monotonic()
        self._next = self._start + 1.0 if stream.isatty() else math.inf
        self._drawn = False

    def show(self, parts: Sequence[float]) -> None:
        """Draw the line anew, unless it was drawn just now. `parts` are the parts of all runs that are done, 0 to 1."""
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
        """Remove the line, so that something else can be printed."""
        if self._drawn:
            self._stream.write("\r\033[K")
            self._stream.flush()
            self._drawn = False
