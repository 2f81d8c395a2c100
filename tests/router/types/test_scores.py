from __future__ import annotations

import math
from array import array

import pytest

from router.policies.base import pick
from router.types import Candidate, EngineId, EngineInfo, EngineView, Score, Scores, Unit

NAMES = ("wait", "prefill")
CANDIDATES = [Candidate(EngineView(EngineId(f"e{n}"), EngineInfo(), n, 0), 16.0 * n) for n in range(4)]


def row(n: int, total: float = 5.0) -> array[float]:
    """Of candidate n: total, predicted_s, hit_tokens, slowness, two terms and a feature."""
    return array("d", [total - n, 0.5, 16.0 * n, 1.5, 0.1 * n, 0.2, 7.0 + n])


def score(n: int) -> Score:
    terms = {"wait": 0.1 * n, "prefill": 0.2}
    return Score(EngineId(f"e{n}"), 5.0 - n, Unit.SECONDS, 0.5, 16.0 * n, 1.5, terms, (7.0 + n,))


def scores_of(*places: int, unit: Unit = Unit.SECONDS) -> Scores:
    rows = array("d", [number for place in places for number in row(place)])
    return Scores([CANDIDATES[place] for place in places], rows, unit, NAMES, len(CANDIDATES))


def test_a_row_is_a_score_with_names() -> None:
    scores = scores_of(0, 1, 2, 3)
    assert list(scores) == [score(n) for n in range(4)]
    assert (len(scores), scores.engines, scores.totals) == (4, ["e0", "e1", "e2", "e3"], [5.0, 4.0, 3.0, 2.0])
    assert scores.find(EngineId("e2")) == score(2)
    assert pick(scores, 0.0) == score(3)
    with pytest.raises(IndexError):
        scores[4]


def test_an_engine_that_was_not_weighed_has_no_score() -> None:
    scores = scores_of(0, 2)
    assert (scores.engines, scores.eligible) == (["e0", "e2"], 4)
    assert scores.find(EngineId("e1")) is None


def test_what_is_not_told_is_none() -> None:
    rows = array("d", [1.0, math.nan, 0.0, math.nan])
    (plain,) = Scores(CANDIDATES[:1], rows, Unit.RANK)
    assert plain == Score(EngineId("e0"), 1.0, Unit.RANK, None, 0.0)


def test_scores_are_equal_to_the_bit_nan_included() -> None:
    nothing = array("d", [1.0, math.nan, 0.0, math.nan])
    assert Scores(CANDIDATES[:1], nothing, Unit.RANK) == Scores(CANDIDATES[:1], nothing[:], Unit.RANK)
    assert scores_of(0, 1) == scores_of(0, 1)
    assert scores_of(0, 1) != scores_of(1, 0)
    assert scores_of(0) != scores_of(0, 1)
    assert scores_of(0) != scores_of(0, unit=Unit.RANK)
    assert scores_of(0) != [score(0)]


def test_a_table_leaves_the_features_out() -> None:
    scores = scores_of(0, 1, 2, 3)
    assert scores.table(range(4)) == array("d", [number for n in range(4) for number in row(n)[:6]])
    assert scores.table([2, 0]) == row(2)[:6] + row(0)[:6]
