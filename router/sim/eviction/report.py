"""The rows of a sweep as a Markdown table, as JSON lines, and as a figure."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from router.sim.eviction.sweep import OPTIMUM, Row

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BASELINE = "lru"
HEADINGS = ("capacity", "order", "hit rate", "[min-max]", "/ lru", "/ opt", "us/access", "fallback")
WIDTHS = (9, 9, 8, 15, 6, 6, 9, 8)
SIDES = "<><>>>>>>"  # How each column is aligned: first that of the trace, then those of HEADINGS.


def to_json(row: Row) -> str:
    """Return the row as one JSON object on one line: `us_per_access` in microseconds, rates from 0 to 1."""
    return json.dumps(asdict(row))


class Table:
    """Lines of a Markdown table. The widths of its columns are fixed, so each line can be printed before the next is
    known. `traces`: the labels that will stand in the first column."""

    def __init__(self, traces: Sequence[str]) -> None:
        self._widths = (max(map(len, ["trace", *traces])), *WIDTHS)

    def head(self) -> str:
        rules = [
            "-" * (width + 1) + ("-" if side == "<" else ":") for side, width in zip(SIDES, self._widths, strict=True)
        ]
        return self._line("trace", *HEADINGS) + "\n|" + "|".join(rules) + "|"

    def line(self, row: Row, beside: Mapping[str, Row]) -> str:
        """Return the line of one row. `beside` holds the rows that it is compared with, by order: at least those of LRU
        and of the optimum, on the same trace at the same capacity."""
        spread = f"[{row.hit_rate_min:.4f}-{row.hit_rate_max:.4f}]"
        return self._line(
            row.trace,
            str(row.capacity),
            row.order,
            f"{row.hit_rate:.4f}",
            spread,
            _ratio(row, beside[BASELINE]),
            _ratio(row, beside[OPTIMUM]),
            f"{row.us_per_access:.2f}",
            f"{row.fallback_share:.1%}",
        )

    def _line(self, *fields: str) -> str:
        columns = zip(fields, SIDES, self._widths, strict=True)
        cells = [f"{field:{side}{width}}" for field, side, width in columns]
        return "| " + " | ".join(cells) + " |"


def _ratio(row: Row, other: Row) -> str:
    if other.hit_rate == 0:
        return "inf" if row.hit_rate else "-"
    return f"{row.hit_rate / other.hit_rate:.3f}"


def draw(rows: Sequence[Row], figure: Figure) -> Figure:
    """Draw hit rate over capacity: a panel for each trace, in it a line for each order, and the range of the seeds as a
    shade around the line."""
    traces = list(dict.fromkeys(row.trace for row in rows))
    orders = list(dict.fromkeys(row.order for row in rows))
    figure.set_layout_engine("constrained")
    figure.set_size_inches(4.5 * min(3, len(traces)) + 1.5, 3.5 * -(-len(traces) // 3))
    panels = figure.subplots(-(-len(traces) // 3), min(3, len(traces)), squeeze=False)
    for panel in panels.flat[len(traces) :]:
        panel.set_axis_off()
    for trace, panel in zip(traces, panels.flat, strict=False):
        shown = [row for row in rows if row.trace == trace]
        panel.set(title=Path(trace).name, xlabel="cache, blocks", ylabel="hit rate", xscale="log")
        for index, order in enumerate(orders):
            line = sorted((row for row in shown if row.order == order), key=lambda row: row.capacity)
            capacities = [row.capacity for row in line]
            colour = f"C{index % 10}"
            panel.plot(capacities, [row.hit_rate for row in line], marker="o", markersize=3, color=colour, label=order)
            low, high = [row.hit_rate_min for row in line], [row.hit_rate_max for row in line]
            panel.fill_between(capacities, low, high, color=colour, alpha=0.2, linewidth=0)
        ticks = sorted({row.capacity for row in shown})
        panel.set_xticks(ticks, [f"{capacity:,}" for capacity in ticks])
        panel.minorticks_off()
        panel.set_ylim(bottom=0)
    figure.legend(*panels.flat[0].get_legend_handles_labels(), loc="outside right upper", frameon=False)
    return figure
