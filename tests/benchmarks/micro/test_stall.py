"""The benchmark of how long the gateway stands still, small, with real processes."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from benchmarks.micro.stall import compare, main, table, worst
from benchmarks.micro.stall_gateway import Kind

SMALL = ["--orders", "rlt_gix", "--blocks", "2000", "--clients", "4", "--seconds", "1.5", "--warm", "0.2"]


def test_every_process_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "stall.json"
    words = [*SMALL, "--processes", "1", "2", "--port", "18340", "--out", str(out)]
    monkeypatch.setattr(sys, "argv", ["stall", *words])
    main()
    rows = json.loads(out.read_text())["rows"]
    assert [(row["processes"], row["memory"], row["process"]) for row in rows] == [
        (1, "empty", "gateway"),
        (1, "full", "gateway"),
        (2, "empty", "router"),
        (2, "empty", "edge"),
        (2, "full", "router"),
        (2, "full", "edge"),
    ]
    for row in rows:
        assert 0.01 < row["stall_ms"] < 1000
        assert 0 <= row["collection_max_ms"] <= row["collection_sum_ms"] < 1000
        assert row["answers"] > 5


def test_the_row_of_a_role_is_its_worst_process() -> None:
    edges = [("edge", {"stall_ms": 1.0, "memory_mb": 9.0}), ("edge", {"stall_ms": 2.0, "memory_mb": 8.0})]
    assert worst([("router", {"stall_ms": 3.0}), *edges]) == {
        "router": {"stall_ms": 3.0},
        "edge": {"stall_ms": 2.0, "memory_mb": 9.0},
    }


def test_the_table_has_medians_and_the_range_of_stalls() -> None:
    kind = Kind(2, "lru", True, 1000)
    rounds = [
        {kind: {"edge": {"stall_ms": ms, "collection_max_ms": ms / 10, "gap_p99_ms": ms * 2}}} for ms in (3.0, 1.0, 2.0)
    ]
    rows = compare(rounds)
    assert rows[0]["stalls_ms"] == [3.0, 1.0, 2.0]
    assert table(rows).splitlines()[-1] == "| 2 | `lru` | full | edge | 0.2 | 2.0 [1.0-3.0] | 4.0 |"
