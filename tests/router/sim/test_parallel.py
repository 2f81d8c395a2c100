"""Runs on several processes are tested with their users, test_study and test_simulate; here what ends them."""

import os

import pytest

from router.errors import SetupError
from router.sim.parallel import Report, measure_all


def double(number: int, report: Report) -> int:
    report(0.5)
    return 2 * number


def die(_number: int, _report: Report) -> None:
    os._exit(1)


@pytest.mark.parametrize("jobs", [1, 2])
def test_results_in_order(jobs: int) -> None:
    seen: list[list[float]] = []
    assert list(measure_all(double, [3, 1, 2], lambda parts: seen.append(list(parts)), jobs)) == [6, 2, 4]
    assert all(0 <= part <= 1 for parts in seen for part in parts)


def test_a_process_that_dies() -> None:
    with pytest.raises(SetupError, match="died"):
        list(measure_all(die, [1, 2], lambda _parts: None, 2))
