from router.policies.base import RoutingContext
from router.policies.lmetric import LMetric
from router.types import Candidate, EngineId, EngineInfo, EngineView
from tests.support.virtual_fleet import ask_for


def scored(prompt: float, *engines: tuple[int, float, float]) -> list[float]:
    """engines: (in flight, tokens queued, tokens cached)."""
    candidates = [
        Candidate(EngineView(EngineId(f"e{n}"), EngineInfo(), load, 0, queued), hit)
        for n, (load, queued, hit) in enumerate(engines)
    ]
    return [s.total for s in LMetric().choose(RoutingContext(ask_for(1), prompt, 64.0, 0.0, 0.0), candidates)]


def test_worked_example() -> None:
    """1000 tokens; idle and cold: 1000 x 1; 600 cached, 300 queued, 2 there: (300 + 400) x 3."""
    assert scored(1000.0, (0, 0.0, 0.0), (2, 300.0, 600.0)) == [1000.0, 2100.0]


def test_an_idle_engine_with_a_longer_prefix_wins_among_idle_ones() -> None:
    cold, warm = scored(1000.0, (0, 0.0, 0.0), (0, 0.0, 512.0))
    assert warm < cold


def test_no_weight_changes_the_order() -> None:
    engines = [(1, 0.0, 0.0), (3, 100.0, 500.0), (2, 700.0, 900.0)]
    scores = scored(1000.0, *engines)
    scaled = scored(3000.0, *[(load, 3 * queued, 3 * hit) for load, queued, hit in engines])
    assert [3 * total for total in scores] == scaled


def test_an_empty_prompt_goes_to_the_smaller_batch() -> None:
    assert scored(0.0, (3, 0.0, 0.0), (1, 0.0, 0.0)) == [4.0, 2.0]
