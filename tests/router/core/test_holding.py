"""Who waits before a request is placed, and for how long."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from router.core.holding import Held, Holding, Release
from router.core.working_set import WorkingSet
from router.types import EngineId, EngineInfo, EngineView, Stop

E0, E1 = EngineId("engine-0"), EngineId("engine-1")


class Play:
    """Two engines of 1,000 tokens each, and sessions that come back in seconds, as `protects` wants it."""

    def __init__(self, longest_s: float = 60.0) -> None:
        self.known = WorkingSet()
        self.holding = Holding(self.known, longest_s)
        self.in_flight = {E0: 1, E1: 1}
        self.now = 0.0
        self.gone_on: list[str] = []
        for _ in range(100):
            self.known.runs("t", E0, 10.0, 1.0, self.now)
            self.known.idles("t", Stop.TOOL_CALL, 10.0, self.now)
            self.now += 5.0
        self.known.renew(self.views(), self.now + 2.0)
        self.now += 2.0
        assert self.known.protects
        self.holding.reused(0.0, 1000.0)

    def views(self) -> Sequence[EngineView]:
        return [
            EngineView(each, EngineInfo(), count, 0, capacity_tokens=1000.0) for each, count in self.in_flight.items()
        ]

    def fill(self) -> None:
        """Both engines run what fills them, and the budget is spent."""
        self.known.runs("x", E0, 950.0, 0.0, self.now)
        self.known.runs("y", E1, 950.0, 0.0, self.now)
        while self.ask("spender", 400.0) is None:
            pass
        self.holding.withdraw(next(iter(self.holding._queue)), self.now)

    def ask(self, session: str, tokens: float = 400.0, lost: float | None = None, output: float = 1.0) -> Held | None:
        def go() -> None:
            self.gone_on.append(session)
            self.known.runs(session, E0, tokens, 0.0, self.now)

        found = tokens if lost is None else lost
        return self.holding.hold(session, tokens, output, tokens, lambda: found, self.views, go, self.now)

    def released(self) -> dict[str, int]:
        return {reason: count for reason, count in self.holding.status().released.items() if count}


@pytest.mark.parametrize("why", ["off", "cached", "short", "fits", "idle", "nothing_kept", "no_engine", "budget"])
def test_who_need_not_wait(why: str) -> None:
    play = Play(0.0 if why == "off" else 60.0)
    if why not in ("fits", "budget", "off"):
        play.fill()
    match why:
        case "budget":
            play.known.runs("x", E0, 950.0, 0.0, play.now)
            play.known.runs("y", E1, 950.0, 0.0, play.now)
        case "idle":
            play.in_flight[E1] = 0
        case "no_engine":
            play.in_flight.clear()
        case "nothing_kept":
            play.known.protects = False
    lost, output = 150.0 if why == "cached" else None, 5.0 if why == "short" else 1.0
    assert play.ask("a", 400.0, lost, output) is None
    assert play.holding.status().held == 0


def test_a_session_that_has_lost_its_cache_waits_until_there_is_room() -> None:
    play = Play()
    play.fill()
    assert play.ask("a")
    play.now += 1.0
    play.holding.let_in(play.now)
    assert (play.gone_on, play.holding.sessions()) == ([], {"a"})
    play.known.forget("x")
    play.holding.let_in(play.now)
    assert (play.gone_on, play.holding.sessions()) == (["a"], set())
    assert play.released() == {"left": 1, "fits": 1}
    assert play.holding.status().seconds == pytest.approx(1.0)
    play.holding.let_in(play.now)
    assert play.gone_on == ["a"]  # once


def test_the_room_of_one_is_not_given_to_two_and_a_smaller_one_goes_ahead_of_a_larger() -> None:
    play = Play()
    play.fill()
    for session, tokens in (("large", 990.0), ("small", 400.0), ("second", 400.0), ("third", 400.0)):
        assert play.ask(session, tokens)
    play.known.runs("x", E0, 100.0, 0.0, play.now)
    play.holding.let_in(play.now)
    assert play.gone_on == ["small", "second"]
    assert play.holding.sessions() == {"large", "third"}


@pytest.mark.parametrize("reason", [Release.IDLE, Release.CHEAP, Release.LONGEST])
def test_they_go_on_as_soon_as_nothing_is_gained(reason: Release) -> None:
    play = Play()
    play.fill()
    held = [play.ask(name) for name in "ab"]
    assert all(held)
    match reason:
        case Release.IDLE:
            play.in_flight[E1] = 0
        case Release.CHEAP:
            play.known.protects = False
        case Release.LONGEST:
            play.now += 59.9
            play.holding.let_in(play.now)
            assert not play.gone_on
            play.now += 0.1
    play.known.renew(play.views(), play.now)
    if reason is Release.CHEAP:
        play.known.protects = False
    play.holding.let_in(play.now)
    assert play.gone_on == ["a", "b"]
    assert play.released() == {"left": 1, reason.value: 2}


def test_the_first_takes_its_turn_when_others_have_used_their_caches_enough() -> None:
    play = Play()
    play.fill()
    assert play.ask("a")
    assert play.ask("b")
    for _ in range(100):  # 10 % of what is reused may be computed again, and one turn has been taken on credit
        play.holding.reused(100.0, 1000.0)
        play.holding.let_in(play.now)
        if play.gone_on:
            break
    assert play.gone_on == ["a"]
    play.holding.let_in(play.now)
    assert play.gone_on == ["a"]  # that was more than there was
    for _ in range(60):
        play.holding.reused(100.0, 1000.0)
        play.holding.let_in(play.now)
    assert play.gone_on == ["a", "b"]
    assert play.released() == {"left": 1, "turn": 2}


def test_whoever_has_left_is_not_placed() -> None:
    play = Play()
    play.fill()
    held = play.ask("a")
    assert held
    play.holding.withdraw(held, play.now)
    play.holding.withdraw(held, play.now)
    play.known.forget("x")
    play.holding.let_in(play.now)
    assert not play.gone_on
    assert play.released() == {"left": 2}
