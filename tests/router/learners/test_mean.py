import pytest

from router.learners.mean import CLASSES, OutputLength, TokenRatio


def test_output_length_moves_within_tens_of_answers_and_by_class():
    lengths = OutputLength(64.0)
    assert lengths.predict_one("chat") == 64.0
    for _ in range(30):
        lengths.learn_one("chat", 400.0)
    assert lengths.predict_one("chat") > 340.0
    assert lengths.predict_one("other") == 64.0


def test_output_length_settles_on_the_mean():
    lengths = OutputLength(64.0)
    for n in range(2000):
        lengths.learn_one("chat", 100.0 + 50.0 * (n % 3 - 1))
    assert lengths.predict_one("chat") == pytest.approx(100.0, rel=0.02)


def test_token_ratio_is_learned_by_model_from_the_start_of_a_quarter():
    ratios = TokenRatio()
    assert ratios.predict_one("m") == 0.25
    for _ in range(20):
        ratios.learn_one("m", 3000, 1000)
    assert ratios.predict_one("m") == pytest.approx(1 / 3, rel=0.02)
    assert ratios.predict_one("other") == 0.25


def test_token_ratio_ignores_what_cannot_be_text():
    ratios = TokenRatio()
    ratios.learn_one("m", 100, 5000)  # an image behind a short text
    ratios.learn_one("m", 10_000, 3)
    assert ratios.predict_one("m") == 0.25


def test_classes_are_capped_and_the_longest_unused_goes_first():
    lengths = OutputLength(64.0)
    for n in range(CLASSES + 10):
        lengths.learn_one("kept", 10.0)
        lengths.learn_one(n, 1000.0)
    assert len(lengths.classes) == CLASSES
    assert lengths.predict_one("kept") < 20.0
    assert lengths.predict_one(0) == 64.0
