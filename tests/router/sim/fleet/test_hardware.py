"""What a step costs."""

import pytest

from router.sim.fleet.hardware import HARDWARE


def test_a_decode_step_by_hand() -> None:
    # 4 + 21 + 10 * 0.05 + 20,000 * 2e-4 = 29.5 ms
    assert HARDWARE["l40-8b"].step_s(0, 0, 10, 20_000) == pytest.approx(0.0295)


def test_a_prefill_step_by_hand() -> None:
    # 4 + 2000 * 0.135 + 2000 * 1000 * 0.135 * 524288 / 16e9 + 0.05 = 4 + 270 + 8.847 + 0.05 ms
    assert HARDWARE["l40-8b"].step_s(2000, 2000 * 1000, 1, 0) == pytest.approx(0.282897, abs=1e-6)


def test_few_prompt_tokens_hide_behind_the_weights() -> None:
    l40 = HARDWARE["l40-8b"]
    assert l40.step_s(155, 0, 1, 0) == l40.step_s(0, 0, 1, 0)
    assert l40.step_s(156, 0, 1, 0) > l40.step_s(0, 0, 1, 0)


def test_profiles_by_name() -> None:
    assert all(name == hardware.name for name, hardware in HARDWARE.items())
    assert set(HARDWARE) == {"l40-8b", "h100-8b", "cpu"}
