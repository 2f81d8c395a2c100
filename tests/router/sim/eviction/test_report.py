"""Rows as a table, as JSON and as a figure."""

import json
from pathlib import Path

import pytest

from router.sim.eviction.report import Table, draw, to_json
from router.sim.eviction.sweep import Row
from router.sim.figure import plotter

LRU = Row("conv", 5000, "lru", 0.1, 0.1, 0.1, 1.25, 0.0)
OPT = Row("conv", 5000, "opt", 0.4, 0.4, 0.4, 2.0, 0.0)
RLT = Row("conv", 5000, "rlt", 0.2, 0.19, 0.21, 2.5, 0.125)


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_json_has_exactly_these_keys() -> None:
    assert json.loads(to_json(RLT)) == {
        "trace": "conv",
        "capacity": 5000,
        "order": "rlt",
        "hit_rate": 0.2,
        "hit_rate_min": 0.19,
        "hit_rate_max": 0.21,
        "us_per_access": 2.5,
        "fallback_share": 0.125,
    }


def test_table() -> None:
    table = Table(["conv"])
    names, rule = table.head().splitlines()
    line = table.line(RLT, {"lru": LRU, "opt": OPT})
    shown = dict(zip(cells(names), cells(line), strict=True))
    assert len(names) == len(rule) == len(line)
    assert shown == {
        "trace": "conv",
        "capacity": "5000",
        "order": "rlt",
        "hit rate": "0.2000",
        "[min-max]": "[0.1900-0.2100]",
        "/ lru": "2.000",
        "/ opt": "0.500",
        "us/access": "2.50",
        "fallback": "12.5%",
    }


def test_ratio_to_nothing() -> None:
    nothing = Row("conv", 5000, "lru", 0.0, 0.0, 0.0, 1.0, 0.0)
    beside = {"lru": nothing, "opt": OPT}
    table = Table(["conv"])
    assert cells(table.line(RLT, beside))[5] == "inf"
    assert cells(table.line(nothing, beside))[5:7] == ["-", "0.000"]


@pytest.mark.parametrize(("suffix", "start"), [(".png", b"\x89PNG"), (".svg", b"<?xml"), (".pdf", b"%PDF")])
def test_plot(tmp_path: Path, suffix: str, start: bytes) -> None:
    file = tmp_path / f"figure{suffix}"
    plotter(str(file), draw)(
        [LRU, RLT, OPT, Row("gsp", 100, "rlt", 0.5, 0.4, 0.6, 1, 0), Row("gsp", 900, "rlt", 0, 0, 0, 1, 0)]
    )
    assert file.read_bytes().startswith(start)
