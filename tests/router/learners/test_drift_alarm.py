import pytest

from router.learners.prediction_error import MOST_DRIFT_ERROR, DriftAlarm
from router.types import EngineId

E0, E1 = EngineId("e0"), EngineId("e1")


def fed(drift: DriftAlarm, *ratios: float) -> bool:
    """Answers that took so many times what was predicted; whether the alarm is on then."""
    for ratio in ratios:
        drift.learn_one(E0, 2.0, 2.0 * ratio)
    return drift.alarms()[E0]


def test_errors_to_both_sides_are_no_drift() -> None:
    drift = DriftAlarm(10, 0.3)
    assert not fed(drift, *[0.2, 1.8] * 20)
    assert drift.mean(E0) == pytest.approx(0.0)


@pytest.mark.parametrize(("ratio", "error"), [(1.4, 0.4), (0.6, -0.4)])
def test_a_lasting_error_to_one_side_is(ratio: float, error: float) -> None:
    drift = DriftAlarm(10, 0.3)
    assert not fed(drift, *[ratio] * 9)
    assert drift.mean(E0) == pytest.approx(error)
    assert fed(drift, ratio)


def test_the_alarm_ends_well_below_where_it_began() -> None:
    drift = DriftAlarm(4, 0.4)
    assert fed(drift, *[1.5] * 4)
    assert fed(drift, *[1.3] * 4)  # would not begin
    assert not fed(drift, *[1.19] * 4)
    assert not fed(drift, *[1.3] * 4)


def test_one_hiccup_counts_only_so_far() -> None:
    drift = DriftAlarm(10, 0.5)
    assert not fed(drift, *[1.0] * 9, 1000.0)
    assert drift.mean(E0) == pytest.approx(MOST_DRIFT_ERROR / 10)


def test_only_the_last_answers_count() -> None:
    drift = DriftAlarm(3, 0.5)
    fed(drift, 9.0, 9.0, 9.0, 1.0, 1.0, 1.3)
    assert drift.mean(E0) == pytest.approx(0.1)


def test_engines_are_apart_and_can_be_forgotten() -> None:
    drift = DriftAlarm(1, 0.5)
    assert fed(drift, 3.0)
    drift.learn_one(E1, 1.0, 1.0)
    drift.learn_one(E1, 0.0, 1.0)  # no prediction
    assert drift.alarms() == {E0: True, E1: False}
    drift.forget(E0)
    drift.forget(EngineId("nobody"))
    assert drift.alarms() == {E1: False}
    assert drift.mean(E0) is None
    drift.clear()
    assert drift.alarms() == {}
