import pytest

from router.policies.lbgr.engine_speed import FADE_S, EngineSpeed
from router.types import EngineId

A, B = EngineId("a"), EngineId("b")


def test_an_engine_twice_as_slow_is_told_apart_and_the_mean_stays_one() -> None:
    slowness = EngineSpeed()
    for _ in range(100):
        slowness.learn_one(A, 100.0, 100.0, 0.0)
        slowness.learn_one(B, 200.0, 100.0, 0.0)
    assert slowness.predict_one(B) / slowness.predict_one(A) == pytest.approx(2.0, rel=0.1)
    assert slowness.predict_one(A) + slowness.predict_one(B) == pytest.approx(2.0, rel=0.05)
    assert slowness.factor(B, 0.0) > 1.0 > slowness.factor(A, 0.0)


def test_within_twenty_percent_nothing_is_decided_by_it() -> None:
    slowness = EngineSpeed()
    for _ in range(100):
        slowness.learn_one(A, 95.0, 100.0, 0.0)
        slowness.learn_one(B, 105.0, 100.0, 0.0)
    assert (slowness.factor(A, 0.0), slowness.factor(B, 0.0)) == (1.0, 1.0)


def test_first_sample_by_hand() -> None:
    slowness = EngineSpeed()
    slowness.learn_one(A, 300.0, 100.0, 0.0)
    # 300 counts as twice the expected: sums 19 + 200 and 19 + 100, three usual samples of 100 on either side
    assert slowness.predict_one(A) == pytest.approx((219 + 300) / (119 + 300))


def test_one_hiccup_decides_nothing_and_a_lasting_change_is_followed() -> None:
    slowness = EngineSpeed()
    slowness.learn_one(A, 5000.0, 100.0, 0.0)
    assert slowness.factor(A, 0.0) == pytest.approx(1.0, abs=0.02)
    for _ in range(40):
        slowness.learn_one(A, 500.0, 100.0, 0.0)
        slowness.learn_one(B, 100.0, 100.0, 0.0)
    # Not all of 5: the three usual samples and the common mean hold back.
    assert 3.0 < slowness.predict_one(A) / slowness.predict_one(B) < 5.0


def test_what_is_known_fades_while_an_engine_is_idle() -> None:
    slowness = EngineSpeed()
    for _ in range(100):
        slowness.learn_one(A, 100.0, 100.0, 50.0)
        slowness.learn_one(B, 300.0, 100.0, 50.0)
    slow = slowness.factor(B, 50.0)
    assert slow > 1.15
    assert slow > slowness.factor(B, 60.0) > 1.0
    assert slowness.factor(B, 50.0 + 5 * FADE_S) == 1.0


def test_a_common_change_of_speed_is_not_the_engines() -> None:
    slowness = EngineSpeed()
    for _ in range(200):
        slowness.learn_one(A, 500.0, 100.0, 0.0)
        slowness.learn_one(B, 500.0, 100.0, 0.0)
    assert slowness.predict_one(A) == pytest.approx(1.0, abs=0.05)


def test_unknown_and_forgotten_engines_are_usual() -> None:
    slowness = EngineSpeed()
    slowness.learn_one(A, 900.0, 100.0, 0.0)
    slowness.forget(A)
    assert (slowness.predict_one(A), slowness.factor(B, 0.0)) == (1.0, 1.0)
    assert slowness.stalled(B, 980.0, 80.0) == pytest.approx((20 + 980) / (20 + 80))
