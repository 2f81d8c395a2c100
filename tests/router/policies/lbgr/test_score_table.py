import math
from array import array

import pytest

from router.policies.base import pick
from router.policies.lbgr.score_table import ScoreTable
from router.types import Candidate, EngineId, EngineInfo, EngineView, Score, Scores

NAMES = ("wait", "prefill")
CANDIDATES = [Candidate(EngineView(EngineId(f"e{n}"), EngineInfo(), n, 0), 16.0 * n) for n in range(4)]


def row(n, total=5.0):
    return array("d", [total - n, 0.5, 16.0 * n, 1.5, 0.1 * n, 0.2, 7.0 + n])


def score(n):
    return Score(EngineId(f"e{n}"), 5.0 - n, 0.5, 16.0 * n, {"wait": 0.1 * n, "prefill": 0.2}, (7.0 + n,))


def rows_of(*places):
    asked = []

    def weigh(candidates):
        asked.append([view.engine for view, _ in candidates])
        return row(candidates[0].view.in_flight)

    numbers = array("d", [number for place in places for number in row(place)])
    return ScoreTable(CANDIDATES, NAMES, numbers, places, weigh), asked


def test_a_row_is_a_score_when_it_is_looked_at():
    rows, asked = rows_of(0, 1, 2, 3)
    assert list(rows) == [score(n) for n in range(4)]
    assert rows.find(EngineId("e2")) == score(2)
    assert (len(rows), rows.engines, list(rows.totals_s)) == (4, ["e0", "e1", "e2", "e3"], [5.0, 4.0, 3.0, 2.0])
    assert pick(rows, 0.0) == score(3)
    assert asked == []
    with pytest.raises(IndexError):
        rows[4]
    with pytest.raises(ValueError, match="not in list"):
        rows.find(EngineId("e9"))


def test_rows_and_scores_tell_the_same():
    rows, scores = rows_of(0, 1, 2, 3)[0], Scores([score(n) for n in range(4)])
    assert rows == scores
    assert rows != Scores([score(0)])
    assert rows != [score(n) for n in range(4)]
    assert rows.table(rows.places) == (NAMES, array("d", [number for n in range(4) for number in row(n)[:6]]))
    assert [*rows.places] == [*scores.places]
    assert [rows.engine(n) for n in range(4)] == [scores.engine(n) for n in range(4)] == rows.engines
    names, numbers = rows.table([2, 0])
    plain_names, plain = scores.table([2, 0])
    assert (names, [x for n, x in enumerate(numbers) if n % 6 != 3]) == (
        plain_names,
        [x for n, x in enumerate(plain) if n % 6 != 3],
    )
    assert (numbers[3], math.isnan(plain[3])) == (1.5, True)


def test_what_was_not_worth_weighing_costs_infinitely_much_until_it_is_looked_at():
    rows, asked = rows_of(0, 2)
    assert list(rows.totals_s) == [5.0, math.inf, 3.0, math.inf]
    assert ([*rows.places], rows.engine(1)) == ([0, 2], "e1")
    assert (pick(rows, 0.0), asked) == (score(2), [])
    assert rows.find(EngineId("e3")) == rows[3] == score(3)
    assert asked == [["e3"]]
    assert rows.table([1, 3])[1] == row(1)[:6] + row(3)[:6]
    assert asked == [["e3"], ["e1"]]
    assert list(rows.totals_s) == [5.0, math.inf, 3.0, math.inf]
