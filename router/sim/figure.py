"""Figures of benchmark rows: the file they go to is checked before a long run, and drawn into after it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from router.errors import ConfigError, SetupError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

R = TypeVar("R")

FORMATS = (".png", ".svg", ".pdf")


def plotter(path: str, draw: Callable[[Sequence[R], Figure], Figure]) -> Callable[[Sequence[R]], None]:
    """Return a function that draws rows into the file at `path`, in the format that its name ends in.

    `draw` draws the rows into an empty figure and returns it. Call this before a long run: whatever would keep the
    figure from being written is found here. Raises ConfigError if the file cannot be written, and SetupError if
    matplotlib is missing.
    """
    file = Path(path)
    if file.suffix.lower() not in FORMATS or not file.parent.is_dir() or file.is_dir():
        raise ConfigError("plot", path, "a file in a folder that exists, its name ending in " + ", ".join(FORMATS))
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise SetupError("--plot needs matplotlib: pip install 'leafcutter-router[bench]'") from None
    return lambda rows: draw(rows, Figure()).savefig(file)
