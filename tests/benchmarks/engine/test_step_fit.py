"""The step model, fitted to steps that are known."""

import random
from dataclasses import replace

import numpy as np
import pytest

from benchmarks.engine.step_fit import Sample, fit, non_negative, predict, profile_line, residuals
from router.sim.fleet.hardware import HARDWARE, Hardware

TRUE = Hardware("true", 3.0, 12.8, 0.2, 1e-4, 0.7, 3e-3, 2048, 40_000)


def sample(rng: random.Random, hardware: Hardware = TRUE, error: float = 0.0) -> Sample:
    """A step of a few prompts and a few sequences that decode."""
    prompts, decoding = rng.choice([(0, 4), (1, 0), (2, 0), (1, 6)])
    chunks = [(rng.randint(1, 1000), rng.choice([0, 512, 2048])) for _ in range(prompts)]
    prompt, lookback = sum(chunk for chunk, _ in chunks), sum(chunk * (held + chunk / 2) for chunk, held in chunks)
    decoding *= rng.randint(1, 4)
    known = Sample(1.0, prompt, lookback, prompts + decoding, decoding, decoding * rng.randint(10, 1000))
    return replace(known, seconds=predict(known, hardware) * (1 + rng.uniform(-error, error)))


def samples(count: int, hardware: Hardware = TRUE, error: float = 0.0) -> list[Sample]:
    rng = random.Random(1)
    return [sample(rng, hardware, error) for _ in range(count)]


def constants(hardware: Hardware) -> list[float]:
    return [
        hardware.step_ms + hardware.weights_ms,
        hardware.prompt_ms,
        hardware.lookback_ms,
        hardware.sequence_ms,
        hardware.context_ms,
    ]


def test_exact_steps_give_the_constants_back() -> None:
    found = fit(samples(200), "true", 2048, 40_000)
    assert constants(found) == pytest.approx(constants(TRUE), rel=0.01)
    assert found.weights_ms == pytest.approx(TRUE.weights_ms, rel=0.01)
    assert (found.name, found.budget_tokens, found.cache_tokens) == ("true", 2048, 40_000)


def test_uneven_steps_give_the_right_time_in_all() -> None:
    steps = samples(600, error=0.05)
    steps[::10] = [replace(step, seconds=2 * step.seconds) for step in steps[::10]]
    rows = residuals(steps, fit(steps, "true", 2048, 40_000))
    (everything,) = [row for row in rows if row["regime"] == "all"]
    assert everything["time_error"] == pytest.approx(0, abs=0.02)
    assert everything["error_median"] == pytest.approx(0.1, abs=0.03)  # of the nine in ten that nothing delayed


def test_hardware_without_weights_to_hide_behind() -> None:
    free = replace(TRUE, weights_ms=0.0)
    assert fit(samples(200, hardware=free), "free", 2048, 40_000).weights_ms < 0.02


def test_no_coefficient_is_negative() -> None:
    rows = np.array([[1.0, 0.0], [1.0, 1.0], [1.0, 2.0]])
    assert non_negative(rows, np.array([3.0, 2.0, 1.0])) == pytest.approx([2.0, 0.0])  # unbounded: 3 - x
    assert non_negative(rows, np.array([-3.0, -2.0, -1.0])) == pytest.approx([0.0, 0.0])
    assert non_negative(rows, np.array([1.0, 3.0, 5.0])) == pytest.approx([1.0, 2.0])


def test_errors_by_regime() -> None:
    steps = samples(300)
    slow = replace(TRUE, **{key: 1.1 * getattr(TRUE, key) for key in ("step_ms", "weights_ms", "prompt_ms")})
    rows = {row["regime"]: row for row in residuals(steps, slow)}
    assert sum(row["steps"] for name, row in rows.items() if name != "all") == rows["all"]["steps"] == 300
    assert rows["prefill, more"]["error_median"] > 0.05 > rows["decode, more, longer"]["error_median"] > 0
    assert all(row["error_median"] == pytest.approx(0) for row in residuals(steps, TRUE))


@pytest.mark.parametrize("hardware", [*HARDWARE.values(), replace(TRUE, most_sequences=64)])
def test_the_line_for_the_file(hardware: Hardware) -> None:
    found = eval(profile_line(hardware))
    assert replace(found, lookback_ms=0) == replace(hardware, lookback_ms=0)
    assert found.lookback_ms == pytest.approx(hardware.lookback_ms, rel=1e-5)
