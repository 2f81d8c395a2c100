import pytest

from router.policies.lbgr.virtual_queue import VirtualQueue

SPEED = 100.0  # tokens a second


def test_grows_at_dispatch_and_drains_at_the_learned_speed() -> None:
    queue = VirtualQueue()
    queue.add(1, 200.0, 0.0, SPEED)
    queue.add(2, 100.0, 1.0, SPEED)
    assert queue.ahead(1.0, SPEED) == (2, 200.0)
    assert queue.ahead(2.5, SPEED) == (1, 50.0)
    assert queue.ahead(9.0, SPEED) == (0, 0.0)


def test_asking_does_not_drain() -> None:
    queue = VirtualQueue()
    queue.add(1, 200.0, 0.0, SPEED)
    assert queue.ahead(1.0, SPEED) == queue.ahead(1.0, SPEED) == (1, 100.0)


def test_evidence_cuts_what_was_dispatched_before() -> None:
    queue = VirtualQueue()
    for serial in (1, 2, 3):
        queue.add(serial, 100.0, 0.0, 0.0)
    queue.reach(2, 0.0, 0.0)
    assert queue.ahead(0.0, SPEED) == (1, 100.0)


def test_late_evidence_does_not_bring_back_what_has_drained() -> None:
    queue = VirtualQueue()
    queue.add(1, 100.0, 0.0, SPEED)
    queue.add(2, 100.0, 0.0, SPEED)
    queue.reach(1, 1.5, SPEED)
    assert queue.ahead(1.5, SPEED) == (1, 50.0)


def test_a_cancelled_request_leaves_alone() -> None:
    queue = VirtualQueue()
    for serial in (1, 2, 3):
        queue.add(serial, 100.0, 0.0, 0.0)
    queue.drop(2)
    queue.drop(7)
    assert queue.ahead(0.0, SPEED) == (2, 200.0)


def test_empty_again_is_exactly_zero() -> None:
    queue = VirtualQueue()
    for serial in range(50):
        queue.add(serial, 0.1 * serial + 0.01, 0.0, 0.0)
    queue.reach(49, 0.0, 0.0)
    assert queue.ahead(0.0, SPEED) == (0, 0.0)
    queue.add(60, 10.0, 5.0, SPEED)
    assert queue.ahead(5.0, SPEED) == pytest.approx((1, 10.0))
