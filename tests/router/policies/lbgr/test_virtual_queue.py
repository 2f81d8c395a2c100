import pytest

from router.policies.lbgr.virtual_queue import VirtualQueue

SPEED = 100.0  # tokens a second


def test_grows_at_dispatch_and_drains_at_the_learned_speed() -> None:
    backlog = VirtualQueue()
    backlog.add(1, 200.0, 0.0, SPEED)
    backlog.add(2, 100.0, 1.0, SPEED)
    assert backlog.ahead(1.0, SPEED) == (2, 200.0)
    assert backlog.ahead(2.5, SPEED) == (1, 50.0)
    assert backlog.ahead(9.0, SPEED) == (0, 0.0)


def test_asking_does_not_drain() -> None:
    backlog = VirtualQueue()
    backlog.add(1, 200.0, 0.0, SPEED)
    assert backlog.ahead(1.0, SPEED) == backlog.ahead(1.0, SPEED) == (1, 100.0)


def test_evidence_cuts_what_was_dispatched_before() -> None:
    backlog = VirtualQueue()
    for serial in (1, 2, 3):
        backlog.add(serial, 100.0, 0.0, 0.0)
    backlog.reach(2, 0.0, 0.0)
    assert backlog.ahead(0.0, SPEED) == (1, 100.0)


def test_late_evidence_does_not_bring_back_what_has_drained() -> None:
    backlog = VirtualQueue()
    backlog.add(1, 100.0, 0.0, SPEED)
    backlog.add(2, 100.0, 0.0, SPEED)
    backlog.reach(1, 1.5, SPEED)
    assert backlog.ahead(1.5, SPEED) == (1, 50.0)


def test_a_cancelled_request_leaves_alone() -> None:
    backlog = VirtualQueue()
    for serial in (1, 2, 3):
        backlog.add(serial, 100.0, 0.0, 0.0)
    backlog.drop(2)
    backlog.drop(7)
    assert backlog.ahead(0.0, SPEED) == (2, 200.0)


def test_empty_again_is_exactly_zero() -> None:
    backlog = VirtualQueue()
    for serial in range(50):
        backlog.add(serial, 0.1 * serial + 0.01, 0.0, 0.0)
    backlog.reach(49, 0.0, 0.0)
    assert backlog.ahead(0.0, SPEED) == (0, 0.0)
    backlog.add(60, 10.0, 5.0, SPEED)
    assert backlog.ahead(5.0, SPEED) == pytest.approx((1, 10.0))
