"""Sessions of token ids are the same requests for the simulator as for a live engine."""

import pytest

from benchmarks.live.session import Session, SessionTraffic, Turn
from router.sim.fleet.scenario import FleetSpec, Run
from router.sim.fleet.simulation import simulate

SHARED = tuple(range(500, 564))
TRAFFIC = SessionTraffic(
    "chat",
    0.5,
    (
        Session(0.0, (Turn((*SHARED, *range(100)), 10, 0.0), Turn(tuple(range(40)), 5, 2.0))),
        Session(4.0, (Turn((*SHARED, *range(200, 250)), 10, 0.0),)),
    ),
)


def test_the_same_tokens_at_the_same_times() -> None:
    played = simulate(Run(TRAFFIC, FleetSpec(1, ("cpu",), 32, 4096), "round_robin", "lru", 0))
    opening, later, other = sorted(played.served, key=lambda served: served.number)
    assert (opening.prompt_tokens, opening.output_tokens, opening.cached_tokens) == (164, 10, 0)
    assert (later.prompt_tokens, later.output_tokens, later.cached_tokens) == (164 + 10 + 40, 5, 160)
    assert later.arrival_s == pytest.approx(opening.done_s + 2.0)
    assert (other.arrival_s, other.prompt_tokens, other.cached_tokens) == (4.0, 114, 64)


def test_the_same_sessions_at_another_rate() -> None:
    faster = TRAFFIC.at_rate(2.0)
    assert (faster.rate, faster.requests) == (2.0, 3)
    assert [session.arrival_s for session in faster.sessions] == [0.0, 1.0]
    assert [session.turns for session in faster.sessions] == [session.turns for session in TRAFFIC.sessions]
