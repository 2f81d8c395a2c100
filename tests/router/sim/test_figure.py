"""Figures: what would keep one from being written is found before the run, not after it."""

import sys
from pathlib import Path

import pytest

from router.errors import ConfigError, SetupError
from router.sim.eviction.report import draw
from router.sim.figure import plotter


@pytest.mark.parametrize("path", ["figure.bmp", "figure", "none/figure.png"])
def test_a_figure_that_cannot_be_written(tmp_path: Path, path: str) -> None:
    with pytest.raises(ConfigError, match="plot"):
        plotter(str(tmp_path / path), draw)


def test_without_matplotlib(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(SetupError, match="pip install"):
        plotter(str(tmp_path / "figure.png"), draw)
