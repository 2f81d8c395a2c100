"""The figure."""

from dataclasses import replace
from pathlib import Path

import pytest

from router.sim.figure import plotter
from router.sim.fleet.chart import draw
from tests.router.sim.fleet.test_result import ROW

SEEDS = [ROW, replace(ROW, seed=1, mean_s=1.7), replace(ROW, policy="random"), replace(ROW, policy="random", seed=1)]


@pytest.mark.parametrize("rates", [(11.0,), (11.0, 13.0)])
def test_lines_or_bars(tmp_path: Path, rates: tuple[float, ...]) -> None:
    from matplotlib.figure import Figure

    rows = [replace(row, rate=rate, workload=name) for row in SEEDS for rate in rates for name in "ab"]
    figure = draw(rows, Figure())
    shown = [panel for panel in figure.axes if panel.axison]
    assert [panel.get_title() for panel in shown] == [f"{name}, 4 engines" for name in "ab"]
    assert bool(shown[0].patches) == (len(rates) == 1)
    file = tmp_path / "figure.svg"
    plotter(str(file), draw)(rows)
    assert b"</svg>" in file.read_bytes()
