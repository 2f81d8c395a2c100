import pytest

from router.learners.prediction_error import ANSWERS, CALM, LEAST_ANSWERS, ErrorAlarm


def taught(error_alarm: ErrorAlarm, actual_s: float, times: int) -> bool:
    for _ in range(times):
        error_alarm.learn_one(1.0, actual_s)
    return error_alarm.alarm


def test_it_rings_when_the_median_is_above_the_bound_and_not_before_it_can_say() -> None:
    error_alarm = ErrorAlarm(4.0)
    assert not taught(error_alarm, 5.1, LEAST_ANSWERS - 1)
    assert taught(error_alarm, 5.1, 1)


def test_a_third_of_wild_answers_is_no_wrong_model() -> None:
    error_alarm = ErrorAlarm(4.0)
    for _ in range(ANSWERS):
        assert not taught(error_alarm, 1000.0, 1)
        assert not taught(error_alarm, 1.1, 2)


def test_it_falls_silent_only_below_half_the_bound() -> None:
    error_alarm = ErrorAlarm(4.0)
    assert taught(error_alarm, 9.0, ANSWERS)
    assert taught(error_alarm, 1.0 + 4.0 * CALM + 0.1, 2 * ANSWERS)
    assert not taught(error_alarm, 1.0 + 4.0 * CALM - 0.1, ANSWERS)
    assert not taught(error_alarm, 4.9, ANSWERS)


def test_no_prediction_is_a_wrong_one() -> None:
    error_alarm = ErrorAlarm(4.0)
    for _ in range(LEAST_ANSWERS):
        error_alarm.learn_one(0.0, 0.1)
    assert error_alarm.alarm


@pytest.mark.parametrize("factor", [3.1, 13.0])
def test_predictions_that_are_too_long_raise_the_alarm_as_those_that_are_too_short_do(factor: float) -> None:
    long, short = ErrorAlarm(2.0), ErrorAlarm(2.0)
    for _ in range(64):
        long.learn_one(factor, 1.0)
        short.learn_one(1.0, factor)
    assert long.alarm
    assert short.alarm
    assert long.dump() == short.dump()


def test_an_answer_that_took_no_time_is_no_praise() -> None:
    alarm = ErrorAlarm(2.0)
    for _ in range(64):
        alarm.learn_one(1.0, 0.0)
    assert alarm.alarm
