"""The rows of simulated runs as a figure: latencies, in a panel for each workload and number of engines."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING

from router.sim.fleet.result import Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ACROSS = 3  # Panels beside each other.


def draw(rows: Sequence[Row], figure: Figure) -> Figure:
    """Draw the rows into `figure` and return it.

    A panel of several rates shows mean latency over rate: a line for each policy and order, and the range of the seeds
    as a shade around it. A panel of one rate shows bars of the mean, with a mark at the P95.
    """
    places = list(dict.fromkeys((row.workload, row.engines) for row in rows))
    cells = list(dict.fromkeys((row.policy, row.order) for row in rows))
    down = -(-len(places) // ACROSS)
    figure.set_layout_engine("constrained")
    figure.set_size_inches(4.5 * min(ACROSS, len(places)) + 1.5, max(3.5, 0.25 * len(cells)) * down)
    panels = figure.subplots(down, min(ACROSS, len(places)), squeeze=False)
    for panel in panels.flat[len(places) :]:
        panel.set_axis_off()
    for (workload, engines), panel in zip(places, panels.flat, strict=False):
        shown = [row for row in rows if (row.workload, row.engines) == (workload, engines)]
        panel.set_title(f"{Path(workload).name}, {engines} engines")
        if len({row.rate for row in shown}) > 1:
            _lines(panel, shown, cells)
        else:
            _bars(panel, shown, cells)
    handles, labels = panels.flat[0].get_legend_handles_labels()
    if handles:
        figure.legend(handles, labels, loc="outside right upper", frameon=False)
    return figure


def _lines(panel: Axes, rows: Sequence[Row], cells: Sequence[tuple[str, str]]) -> None:
    panel.set(xlabel="sessions a second", ylabel="mean latency, s", yscale="log")
    for index, (policy, order) in enumerate(cells):
        by_rate: dict[float, list[float]] = {}
        for row in rows:
            if (row.policy, row.order) == (policy, order):
                by_rate.setdefault(row.rate, []).append(row.mean_s)
        rates = sorted(by_rate)
        colour = f"C{index % 10}"
        style = "-" if index < 10 else "--"
        means = [fmean(by_rate[rate]) for rate in rates]
        panel.plot(rates, means, style, marker="o", markersize=3, color=colour, label=f"{policy} + {order}")
        low, high = [min(by_rate[rate]) for rate in rates], [max(by_rate[rate]) for rate in rates]
        panel.fill_between(rates, low, high, color=colour, alpha=0.2, linewidth=0)


def _bars(panel: Axes, rows: Sequence[Row], cells: Sequence[tuple[str, str]]) -> None:
    panel.set(xlabel="latency, s: mean, and P95 (mark)", xscale="log")
    names = [f"{policy} + {order}" for policy, order in cells]
    of = [[row for row in rows if (row.policy, row.order) == cell] for cell in cells]
    panel.barh(names, [fmean(row.mean_s for row in each) for each in of], color="C0")
    panel.plot([fmean(row.p95_s for row in each) for each in of], names, "|", color="black", markersize=9)
    panel.invert_yaxis()
