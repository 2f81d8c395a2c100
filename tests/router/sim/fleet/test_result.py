"""What a run comes to."""

import json
import math
from dataclasses import replace
from typing import Any

import pytest

from router.errors import SetupError
from router.sim.fleet.result import KEYS, Row, Table, mean_row, measure, percentile, summarize, to_json
from router.sim.fleet.scenario import FleetSpec, Run
from router.sim.fleet.simulation import RunResult, ServedRequest
from router.sim.fleet.traffic import Workload

RUN = Run(Workload("gsp", 2.0, 10), FleetSpec(2, ("l40-8b",), 128), "lbgr", "lru", 4)
ROW = Row("gsp", "lbgr", "rlt_gix", 4, 11.0, 0, 1.5, 1.25, 3.0, 4.0, 0.75, 2.0, 0.4, 10.5, 1.05, 0, 3)


def served(number: int, arrival_s: float, first_s: float, done_s: float, cached: int = 50) -> ServedRequest:
    return ServedRequest(number, arrival_s, first_s, done_s, 100, cached, 10, 0)


def test_counted_by_hand() -> None:
    # Of 20 requests numbers 0 and 1 are the warm-up; 7 came after the last session had begun.
    rows = [served(0, 0, 5, 9), served(1, 1, 2, 3), *(served(n, n, n + 0.5, n + 2) for n in (2, 3, 4, 5))]
    rows += [served(6, 6, 7, 10, cached=0), served(7, 11, 18, 19)]
    row = summarize(RUN, RunResult(rows, 20, 10.0, 3, 1, [6.0, 2.0]))
    assert (row.mean_s, row.p50_s, row.p95_s, row.p99_s) == (2.4, 2.0, 4.0, 4.0)
    assert row.ttft_mean_s == pytest.approx(0.6)
    assert row.ttft_p99_s == 1.0
    assert row.hit_rate == 200 / 500
    assert row.throughput_rps == 7 / 8  # between 2 and 10 s, all but the last
    assert (row.imbalance, row.failed, row.preemptions) == (1.5, 3, 1)
    assert (row.workload, row.policy, row.order, row.engines, row.rate, row.seed) == ("gsp", "lbgr", "lru", 2, 2.0, 4)


def test_nothing_that_counts() -> None:
    with pytest.raises(SetupError, match="lbgr with lru: no request"):
        summarize(RUN, RunResult([served(0, 0, 1, 2)], 20, 10.0, 19, 0, [1.0, 1.0]))


def test_measured() -> None:
    row = measure(RUN)
    assert 0 < row.ttft_mean_s < row.mean_s < row.p99_s
    assert to_json(row) == to_json(measure(RUN))  # a row with a nan equals none


def test_percentiles_are_nearest_ranks() -> None:
    ordered = [float(n) for n in range(1, 101)]
    assert [percentile(ordered, part) for part in (0.5, 0.95, 0.99)] == [50, 95, 99]
    assert percentile([7.0], 0.5) == 7


def test_json_has_exactly_these_keys() -> None:
    found = json.loads(to_json(ROW))
    assert list(found) == list(KEYS)
    assert found["mean_s"] == 1.5
    assert (
        *("workload", "policy", "order", "engines", "rate", "seed", "mean_s", "p50_s", "p95_s", "p99_s"),
        *("ttft_mean_s", "ttft_p99_s", "hit_rate", "throughput_rps", "imbalance"),
    ) == KEYS


def test_the_mean_of_seeds() -> None:
    other = Row(*("gsp", "lbgr", "rlt_gix", 4, 11.0, 1), *[2 * value for value in tuple_of(ROW)[6:]])
    mean = mean_row([ROW, other])
    assert mean.mean_s == 2.25
    assert mean.failed == 0
    assert mean.seed == 0


def tuple_of(row: Row) -> tuple[Any, ...]:
    return tuple(getattr(row, name) for name in row.__slots__)


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_bounds_that_are_kept_are_a_share_and_a_column() -> None:
    rows = [served(n, n, n + 0.1 * n, n + 0.1 * n + 0.9) for n in range(2, 8)]  # 0.1 s for each of nine later tokens
    result = RunResult(rows, 8, 10.0, 0, 0, [1.0, 1.0])
    fleet = replace(RUN.fleet, slo_ttft_s=0.45)
    assert summarize(replace(RUN, fleet=fleet), result).slo_attainment == pytest.approx(3 / 6)
    fleet = replace(RUN.fleet, slo_tpot_s=0.09)
    assert summarize(replace(RUN, fleet=fleet), result).slo_attainment == 0.0
    assert math.isnan(summarize(RUN, result).slo_attainment)
    table = Table(["gsp"], ["lbgr"], ["rlt_gix"], slo=True)
    shown = dict(
        zip(cells(table.head().splitlines()[0]), cells(table.line(replace(ROW, slo_attainment=0.875))), strict=True)
    )
    assert (shown["failed"], shown["in SLO"]) == ("0", "0.875")


def test_table() -> None:
    table = Table(["gsp"], ["lbgr", "round_robin"], ["rlt_gix"])
    names, rule = table.head().splitlines()
    line = table.line(ROW)
    assert len(names) == len(rule) == len(line)
    assert dict(zip(cells(names), cells(line), strict=True)) == {
        "workload": "gsp",
        "policy": "lbgr",
        "order": "rlt_gix",
        "engines": "4",
        "rate": "11",
        "mean s": "1.500",
        "P50": "1.250",
        "P95": "3.000",
        "P99": "4.000",
        "TTFT s": "0.750",
        "TTFT P99": "2.000",
        "hit": "0.400",
        "req/s": "10.50",
        "imbal.": "1.05",
        "failed": "0",
    }
