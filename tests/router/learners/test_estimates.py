import pytest

from router.learners.estimates import CLASSES, OutputLength, TokenRatio


def test_output_length_moves_within_tens_of_answers_and_by_class() -> None:
    lengths = OutputLength(64.0)
    assert lengths.predict_one(["chat"]) == 64.0
    for _ in range(30):
        lengths.learn_one(["chat"], 400.0)
    assert lengths.predict_one(["chat"]) == pytest.approx(64 + 30 / 34 * (400 - 64))
    assert lengths.predict_one(["other"]) == 64.0


def test_output_length_settles_on_the_mean() -> None:
    lengths = OutputLength(64.0)
    for n in range(2000):
        lengths.learn_one(["chat"], 100.0 + 50.0 * (n % 3 - 1))
    assert lengths.predict_one(["chat"]) == pytest.approx(100.0, rel=0.02)


def test_a_class_begins_with_the_mean_around_it_and_finds_its_own() -> None:
    lengths = OutputLength(64.0)
    for _ in range(400):
        lengths.learn_one(["model", ("model", "short")], 20.0)
        lengths.learn_one(["model", ("model", "long")], 480.0)
    assert lengths.predict_one(["model"]) == pytest.approx(250, rel=0.05)
    assert lengths.predict_one(["model", ("model", "new")]) == lengths.predict_one(["model"])
    assert lengths.predict_one(["model", ("model", "short")]) < 30
    assert lengths.predict_one(["model", ("model", "long")]) > 470
    lengths.learn_one(["model", ("model", "long"), ("model", "long", "session")], 40.0)
    assert lengths.predict_one(["model", ("model", "long"), ("model", "long", "session")]) < 400


def test_token_ratio_is_learned_by_model_from_the_start_of_a_quarter() -> None:
    ratios = TokenRatio()
    assert ratios.predict_one("m") == 0.25
    for _ in range(20):
        ratios.learn_one("m", 3000, 1000)
    assert ratios.predict_one("m") == pytest.approx(1 / 3, rel=0.02)
    assert ratios.predict_one("other") == 0.25


def test_token_ratio_ignores_what_cannot_be_text() -> None:
    ratios = TokenRatio()
    ratios.learn_one("m", 100, 5000)  # an image behind a short text
    ratios.learn_one("m", 10_000, 3)
    assert ratios.predict_one("m") == 0.25


def test_classes_are_capped_and_the_longest_unused_goes_first() -> None:
    lengths = OutputLength(64.0)
    for n in range(CLASSES + 10):
        lengths.learn_one(["kept"], 10.0)
        lengths.learn_one([n], 1000.0)
    assert len(lengths.classes) == CLASSES
    assert lengths.predict_one(["kept"]) < 20.0
    assert lengths.predict_one([0]) == 64.0
