"""The verdict, from rows by hand."""

from dataclasses import replace

import pytest

from router.sim.fleet.result import Row
from router.sim.fleet.verdict import judge, ratio
from tests.router.sim.fleet.test_result import ROW


def cell(policy: str, *means: float) -> list[Row]:
    return [replace(ROW, policy=policy, seed=seed, mean_s=mean) for seed, mean in enumerate(means)]


def test_a_steady_ratio_has_no_spread() -> None:
    assert ratio(cell("a", 1.0, 2.0, 4.0), cell("b", 2.0, 4.0, 8.0)) == pytest.approx((0.5, 0.5, 0.5))


def test_the_geometric_mean_of_the_ratios() -> None:
    middle, low, high = ratio(cell("a", 1.0, 4.0), cell("b", 2.0, 2.0))
    assert middle == pytest.approx(1.0)
    assert (low, high) == pytest.approx((0.5, 2.0))


def test_a_sentence() -> None:
    said = judge([cell("lbgr", 1.0, 1.1, 1.2), cell("random", 2.0, 2.2, 2.4), cell("near", 1.2, 1.0, 1.3)])
    assert said == (
        "gsp, 11/s, 4 engines: best mean 1.100 s, lbgr + rlt_gix; its part of random + rlt_gix: 0.500 [0.500-0.500], "
        f"near + rlt_gix: {'0.946 [0.833-1.100], not shown to be better'}"
    )


def test_one_seed_gives_no_interval() -> None:
    said = judge([cell("a", 1.0), cell("b", 2.0)])
    assert said.endswith("its part of b + rlt_gix: 0.500 (one seed)")


def test_alone() -> None:
    assert judge([cell("a", 1.0)]).endswith("best mean 1.000 s, a + rlt_gix")
