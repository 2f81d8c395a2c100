"""What a live engine is asked, as the simulator's traffic."""

import pytest

from benchmarks.live.talk import Talk, Talks, Turn
from router.sim.fleet.play import play
from router.sim.fleet.scenario import FleetSpec, Run

SHARED = tuple(range(500, 564))
TALKS = Talks(
    "chat",
    0.5,
    (
        Talk(0.0, (Turn((*SHARED, *range(100)), 10, 0.0), Turn(tuple(range(40)), 5, 2.0))),
        Talk(4.0, (Turn((*SHARED, *range(200, 250)), 10, 0.0),)),
    ),
)


def test_the_same_tokens_at_the_same_times():
    played = play(Run(TALKS, FleetSpec(1, ("cpu",), 32, 4096), "round_robin", "lru", 0))
    opening, later, other = sorted(played.served, key=lambda served: served.number)
    assert (opening.prompt_tokens, opening.output_tokens, opening.cached_tokens) == (164, 10, 0)
    assert (later.prompt_tokens, later.output_tokens, later.cached_tokens) == (164 + 10 + 40, 5, 160)
    assert later.arrival_s == pytest.approx(opening.done_s + 2.0)
    assert (other.arrival_s, other.prompt_tokens, other.cached_tokens) == (4.0, 114, 64)


def test_another_pace():
    faster = TALKS.paced(2.0)
    assert (faster.rate, faster.requests) == (2.0, 3)
    assert [talk.at_s for talk in faster.talks] == [0.0, 1.0]
    assert [talk.turns for talk in faster.talks] == [talk.turns for talk in TALKS.talks]
