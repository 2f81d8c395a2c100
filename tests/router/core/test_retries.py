"""What another try costs."""

from __future__ import annotations

import pytest

from router.core.retries import BUDGET_S, BUDGET_SHARE, RetryBudget
from router.errors import RetryReason


def test_a_lost_try_costs_its_time_and_answers_pay_for_it() -> None:
    budget = RetryBudget()
    assert budget.spend(RetryReason.RESET, BUDGET_S, None)
    assert not budget.spend(RetryReason.RESET, 0.1, None)
    assert budget.spend(RetryReason.BUSY, 0.0, None), "who refuses at once has spent nothing"
    budget.answered(0.1 / BUDGET_SHARE)
    assert budget.spend(RetryReason.FAILED, 0.1, None)
    assert budget.left_s == pytest.approx(0.0)


def test_a_try_costs_no_more_than_was_predicted_for_it() -> None:
    """Else a few requests that an engine lets hang before it breaks would use up the budget of all."""
    budget = RetryBudget()
    for _ in range(50):
        assert budget.spend(RetryReason.RESET, 100.0, 1.0)
    assert budget.left_s == BUDGET_S - 50
    assert budget.spend(RetryReason.RESET, 1.0, 100.0)
    assert budget.left_s == BUDGET_S - 51


def test_a_move_away_from_an_engine_that_was_taken_out_is_free() -> None:
    budget = RetryBudget()
    for _ in range(50):
        assert budget.spend(RetryReason.MOVED, 100.0, None)
    assert budget.left_s == BUDGET_S
