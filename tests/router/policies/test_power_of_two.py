from collections import Counter

import pytest

from router.policies.base import RoutingContext, pick
from router.policies.power_of_two import PowerOfTwo, draw_two
from router.types import Candidate, EngineId, EngineInfo, EngineView
from tests.support.virtual_fleet import ask_for


def candidates(*loads: int) -> list[Candidate]:
    return [Candidate(EngineView(EngineId(f"e{n}"), EngineInfo(), load, 0), 0.0) for n, load in enumerate(loads)]


def asked(chance: float) -> RoutingContext:
    return RoutingContext(ask_for(1), 64.0, 64.0, 0.0, chance)


@pytest.mark.parametrize("count", [2, 3, 7])
def test_ordered_pairs_of_different_engines_are_equally_likely(count: int) -> None:
    pairs = count * (count - 1)
    drawn = Counter(draw_two(count, (n + 0.5) / (10 * pairs)) for n in range(10 * pairs))
    assert len(drawn) == pairs
    assert set(drawn.values()) == {10}
    assert all(first != second for first, second in drawn)
    assert draw_two(1, 0.99) == (0, 0)


def test_worked_example() -> None:
    """Of 12 ordered pairs, chance .4 draws number 4: engine 1, and the second of the others, engine 2."""
    scores = PowerOfTwo().choose(asked(0.4), candidates(0, 5, 3, 9))
    assert [score.total for score in scores] == [6.0, 5.0, 3.5, 6.0]
    assert pick(scores, 0.4).engine == "e2"


def test_the_less_loaded_of_the_two_wins_and_the_others_never() -> None:
    for n in range(120):
        chance = (n + 0.5) / 120
        scores = PowerOfTwo().choose(asked(chance), candidates(4, 1, 3, 2))
        first, second = draw_two(4, chance)
        winner = min((first, second), key=[4, 1, 3, 2].__getitem__)
        assert pick(scores, chance).engine == f"e{winner}"


def test_level_engines_are_chosen_alike() -> None:
    chosen = Counter[EngineId]()
    for n in range(1200):
        chance = (n + 0.5) / 1200
        chosen[pick(PowerOfTwo().choose(asked(chance), candidates(2, 2, 2, 2)), chance).engine] += 1
    assert chosen == {"e0": 300, "e1": 300, "e2": 300, "e3": 300}
