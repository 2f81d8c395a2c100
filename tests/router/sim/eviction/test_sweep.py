"""Many runs: in order, the same on one process and on several, and no process outlives them."""

import multiprocessing
from collections.abc import Iterable, Sequence
from pathlib import Path

import pytest

from engine_patches.orders import ORDERS
from router.errors import TraceError
from router.sim.eviction.sweep import OPTIMUM, ORDER_CHOICES, Row, Run, is_randomized, measure, sweep
from router.sim.eviction.workload import Workload
from router.sim.trace import TraceFile

TRACE = Workload("cyclic", 1300)


def facts(rows: Iterable[Row]) -> list[tuple[object, ...]]:
    return [(row.trace, row.capacity, row.order, row.hit_rate, row.hit_rate_min, row.hit_rate_max) for row in rows]


def test_rows_in_order() -> None:
    traces = [TRACE, Workload("gsp", 30)]
    rows = list(sweep(traces, [4000, 10000], ["rlt", "lru", "opt"], [3, 4]))
    assert [(row.trace, row.capacity, row.order) for row in rows] == [
        (trace, capacity, order)
        for trace in ("cyclic", "gsp")
        for capacity in (4000, 10000)
        for order in ("rlt", "lru", "opt")
    ]


def test_a_row_tells_the_range_over_the_seeds() -> None:
    rates = [measure(Run(TRACE, 10000, "rlt", seed)).hit_rate for seed in (3, 4, 5)]
    (row,) = sweep([TRACE], [10000], ["rlt"], [3, 4, 5])
    assert row.hit_rate == pytest.approx(sum(rates) / 3)
    assert (row.hit_rate_min, row.hit_rate_max) == (min(rates), max(rates))
    assert row.hit_rate_min < row.hit_rate_max
    assert row.us_per_access > 0
    assert row.fallback_share == 0


def test_an_order_without_chance_runs_once() -> None:
    seen: list[int] = []
    list(sweep([TRACE], [4000], ["lru", "opt", "rlt"], [0, 1, 2], watch=lambda parts: seen.append(len(parts))))
    assert set(seen) == {5}
    assert not is_randomized("lru")
    assert not is_randomized(OPTIMUM)
    assert is_randomized("rlt")


@pytest.mark.parametrize("order", ORDER_CHOICES)
def test_every_order_runs(order: str) -> None:
    done = measure(Run(Workload("chat", 40), 300, order, 0))
    assert done.requests == 40
    assert done.hits < done.accesses
    assert set(ORDER_CHOICES) == {*ORDERS, OPTIMUM}


def test_the_watch_sees_both_passes_of_the_optimum() -> None:
    parts: list[float] = []
    measure(Run(TRACE, 100, OPTIMUM, 0), parts.append)
    assert parts == sorted(parts)
    assert parts[0] == 0
    assert 0.5 in parts


def test_on_several_processes() -> None:
    here = sweep([TRACE], [4000, 10000], ["rlt", "opt"], [0, 1])
    seen: list[Sequence[float]] = []
    apart = sweep([TRACE], [4000, 10000], ["rlt", "opt"], [0, 1], jobs=2, watch=seen.append)
    assert facts(here) == facts(apart)
    assert seen
    assert all(0 <= part <= 1 for parts in seen for part in parts)
    assert not multiprocessing.active_children()


def test_an_error_ends_the_processes(tmp_path: Path) -> None:
    path = tmp_path / "trace.txt"
    path.write_text("1\n2\nx\n")
    with pytest.raises(TraceError, match="line 3"):
        list(sweep([TraceFile(str(path))], [2, 3, 4], ["lru", "rlt"], [0], jobs=2))
    assert not multiprocessing.active_children()


def test_processes_end_with_the_study() -> None:
    rows = sweep([Workload("cyclic", 10**9)], [10], ["lru"], [0], jobs=2)
    with pytest.raises(KeyboardInterrupt):
        for _ in sweep([Workload("cyclic", 10**9)], [10], ["lru"], [0, 1], jobs=2, watch=interrupt):
            pass
    rows.close()
    assert not multiprocessing.active_children()


def interrupt(_parts: Sequence[float]) -> None:
    raise KeyboardInterrupt
