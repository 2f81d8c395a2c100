import random

import pytest

from router.learners.least_squares import NonNegativeLeastSquares


def taught(truth: tuple[float, ...], prior: tuple[float, ...], samples: int) -> NonNegativeLeastSquares:
    rng = random.Random(1)
    model = NonNegativeLeastSquares(prior, (0.01,) * len(prior))
    for _ in range(samples):
        x = tuple(rng.uniform(0, 10) for _ in truth)
        y = sum(t * v for t, v in zip(truth, x, strict=True))
        model.learn_one(x, y, 1.0)
    return model


@pytest.mark.parametrize("truth", [(3.0, 0.5, 7.0), (30.0, 5.0, 70.0), (0.3, 0.05, 0.7)])
def test_learns_the_coefficients_of_linear_data(truth: tuple[float, ...]) -> None:
    model = taught(truth, (3.0, 0.5, 7.0), 100)
    assert model.weights == pytest.approx(truth, rel=0.05)


def test_never_goes_below_zero_where_plain_least_squares_would() -> None:
    model = NonNegativeLeastSquares((1.0, 1.0), (0.01, 0.01))
    for x in ((1.0, 0.0), (1.0, 1.0), (1.0, 2.0)) * 20:
        model.learn_one(x, 5.0 - x[1], 1.0)
    assert model.weights[1] == 0.0
    assert model.weights[0] == pytest.approx(4.0, rel=0.05)  # the best constant: the mean of 5, 4, 3


def test_follows_a_change_and_forgets_the_past() -> None:
    model = NonNegativeLeastSquares((1.0,), (0.1,))
    for _ in range(500):
        model.learn_one((1.0,), 1.0, 1.0)
    for _ in range(800):
        model.learn_one((1.0,), 3.0, 1.0)
    assert model.weights[0] == pytest.approx(3.0, rel=0.02)


def test_asking_changes_nothing_and_without_samples_the_prior_answers() -> None:
    model = NonNegativeLeastSquares((2.0, 3.0), (1.0, 1.0))
    assert [model.predict_one((1.0, 10.0)) for _ in range(3)] == [32.0] * 3
    assert model.samples == 0


def test_refuses_what_would_poison_it() -> None:
    model = NonNegativeLeastSquares((1.0,), (1.0,))
    with pytest.raises(AssertionError):
        model.learn_one((1.0,), float("nan"), 1.0)
