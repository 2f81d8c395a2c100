"""The benchmark of what the gateway's processes cost, each told apart."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from benchmarks.live.process_cost import compare, main, table


def test_every_part_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "cost.json"
    words = ["--processes", "1", "2", "--engines", "2", "--clients", "4", "--rounds", "1", "--seconds", "0.3", "--out"]
    monkeypatch.setattr(sys, "argv", ["process_cost", *words, str(out)])
    main()
    rows = {(row["processes"], row["part"]): row for row in json.loads(out.read_text())["rows"]}
    assert set(rows) == {(1, "gateway"), (2, "supervisor"), (2, "edges"), (2, "router")}
    for key in ((1, "gateway"), (2, "edges"), (2, "router")):
        assert 20 < rows[key]["request"][0] < 100_000
    assert rows[1, "gateway"]["chunk"][0] > 2
    assert rows[2, "edges"]["chunk"][0] > 2
    assert rows[2, "supervisor"]["request"][0] < rows[2, "router"]["request"][0]


def test_the_table_has_medians_and_ranges() -> None:
    rounds = [{1: {"gateway": {"request": us, "chunk": us / 10}}} for us in (300.0, 100.0, 200.0)]
    rows = compare(rounds)
    assert rows == [{"processes": 1, "part": "gateway", "request": [300.0, 100.0, 200.0], "chunk": [30.0, 10.0, 20.0]}]
    assert table(rows).splitlines()[-1] == "| 1 | gateway | 200 [100-300] | 20 [10-30] |"
