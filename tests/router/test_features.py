import pytest

from router.features import crowd, queued_tokens
from router.types import Booking, EngineId, EngineInfo, EngineView

E = EngineId("e0")


def waiting(tokens: float, head_tokens: float, *, since_s: float = 10.0) -> EngineView:
    head = Booking(1, E, 10.0, True, head_tokens, 0.0, 1.0, None)
    return EngineView(E, EngineInfo(), 3, 3, tokens, tokens, 1000.0, head, since_s)


def test_crowd_is_thinned_where_the_cache_cannot_hold_all():
    assert crowd(6, 500.0, 1000.0) == (6, 500.0)
    assert crowd(6, 3000.0, 1000.0) == (2.0, 1000.0)


def test_the_head_of_the_queue_counts_less_the_longer_it_is_served():
    assert queued_tokens(waiting(900.0, 300.0), 10.0, 100.0) == 900.0
    assert queued_tokens(waiting(900.0, 300.0), 12.0, 100.0) == 700.0
    assert queued_tokens(waiting(900.0, 300.0), 99.0, 100.0) == 600.0  # never more than itself
    assert queued_tokens(waiting(900.0, 300.0, since_s=11.5), 12.0, 100.0) == 850.0


def test_nobody_waits_nothing_is_queued():
    view = EngineView(E, EngineInfo(), 5, 0, capacity_tokens=10.0)
    assert queued_tokens(view, 1.0, 100.0) == pytest.approx(0.0)
