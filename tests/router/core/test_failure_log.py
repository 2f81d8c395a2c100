"""Every failure of an engine is in the log, and thousands of them are few lines."""

import logging
from collections.abc import Callable

import pytest

from router.core.failure_log import FailureLog


class Timer:
    """Takes what is to be called later, and calls it when the test says so."""

    def __init__(self) -> None:
        self.calls: list[Callable[[], None]] = []

    def later(self, _: float, call: Callable[[], None]) -> None:
        self.calls.append(call)

    def ring(self) -> None:
        calls, self.calls = self.calls, []
        for call in calls:
            call()


@pytest.fixture
def timer() -> Timer:
    return Timer()


@pytest.fixture
def failures(timer: Timer) -> FailureLog:
    return FailureLog(logging.getLogger("test"), timer.later, quiet_s=10.0)


def test_a_failure_names_its_engine_its_reason_and_its_request(
    failures: FailureLog, caplog: pytest.LogCaptureFixture
) -> None:
    failures.tell("engine-0", "reset", "the connection was lost", "r-1")
    failures.tell("engine-1", "reset", "the connection was lost")
    assert caplog.messages == ["engine-0: the connection was lost (request r-1)", "engine-1: the connection was lost"]


def test_those_that_follow_are_counted(timer: Timer, failures: FailureLog, caplog: pytest.LogCaptureFixture) -> None:
    for number in range(1000):
        failures.tell("engine-0", "reset", "lost", f"r-{number}")
    failures.tell("engine-0", "timeout", "late", "r-x")
    assert caplog.messages == ["engine-0: lost (request r-0)", "engine-0: late (request r-x)"]
    timer.ring()
    assert caplog.messages[2:] == ["engine-0: 999 more failures (reset) within 10 s"]


def test_after_a_quiet_time_nothing_is_kept_and_the_next_failure_is_told_at_once(
    timer: Timer, failures: FailureLog, caplog: pytest.LogCaptureFixture
) -> None:
    failures.tell("engine-0", "reset", "lost", "r-0")
    timer.ring()
    assert not timer.calls
    failures.tell("engine-0", "reset", "lost", "r-1")
    assert caplog.messages == ["engine-0: lost (request r-0)", "engine-0: lost (request r-1)"]
