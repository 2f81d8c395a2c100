"""What orders are told of sessions in each mode, and that it is worth something and does no harm."""

from collections.abc import Hashable

import pytest

from engine_patches.orders import ORDERS
from router.sim.eviction.replay import Cache, replay
from router.sim.hints import HINTS, Hints
from router.sim.trace import Request
from router.types import Stop


class Order:
    """Notes what it is told."""

    def __init__(self) -> None:
        self.told: list[tuple[Hashable, float | None]] = []

    def expect(self, session: Hashable, seconds: float | None) -> None:
        self.told.append((session, seconds))


@pytest.mark.parametrize("mode", HINTS)
def test_who_is_told_what(mode: str) -> None:
    hints, order = Hints(mode, 1), Order()
    for turn in range(50):
        for session, gap in (("fast", 2.0), ("slow", 500.0), (None, 1.0)):
            hints.arrived(session, turn * gap)
            hints.answered(session, Stop.TOOL_CALL, turn * gap, None, order)
    assert hints.names_sessions == (mode != "off")
    if mode in ("off", "alone"):
        assert order.told == []
        return
    assert {session for session, _ in order.told} == {"fast", "slow"}
    slow = [seconds for session, seconds in order.told if session == "slow" and seconds is not None][-20:]
    assert (min(slow) > 100) == (mode == "on")


def rate(order: str, mode: str) -> float:
    """The hit rate of 12 sessions, each with bursts of requests and long pauses after the end of a turn, which a cache
    for six of them serves."""
    events = []
    for session in range(12):
        now = 7.0 * session
        for turn in range(40):
            last = turn % 4 == 3
            kind = Stop.END_OF_TURN if last else Stop.TOOL_CALL
            events.append((now, session, kind))
            now += 400.0 if last else 8.0
    requests = [
        Request([session * 100 + place for place in range(50)], now, session=str(session), stop=kind)
        for now, session, kind in sorted(events)
    ]
    return replay(Cache(ORDERS[order](300, 0), Hints(mode, 0)), requests).hit_rate


def test_an_order_that_heeds_no_sessions_is_the_same_in_every_mode() -> None:
    for name in sorted({*ORDERS} - {"gix", "rlt_gix"}):
        assert len({rate(name, mode) for mode in HINTS}) == 1


def test_hints_are_worth_something_and_senseless_ones_cost_little() -> None:
    rates = {mode: rate("rlt_gix", mode) for mode in HINTS}
    print(rates)
    assert rates["on"] > 1.05 * rates["off"]
    assert rates["shuffled"] > 0.95 * rates["off"]


def test_requests_without_sessions_or_times_are_served_as_before() -> None:
    requests = [Request([number % 7, number]) for number in range(200)]
    rates = {replay(Cache(ORDERS["rlt_gix"](20, 0), Hints(mode, 0)), requests).hit_rate for mode in HINTS}
    assert len(rates) == 1
