from __future__ import annotations

import gc
import json
import tracemalloc
from array import array
from collections.abc import Sequence
from dataclasses import replace
from math import inf, nan
from typing import Any

import pytest

from router.core.decision_log import ENGINES, NAME_CHARS, DecisionLog, LoggedDecision
from router.types import (
    BlockKey,
    Candidate,
    Decision,
    Ending,
    EngineId,
    EngineInfo,
    EngineView,
    Outcome,
    ParsedRequest,
    PrefixExpectation,
    Scores,
    ShadowChoice,
    Unit,
)
from tests.support.virtual_fleet import answered, prompt_of, router_with

E0, E1 = EngineId("e0"), EngineId("e1")
ENGINE_IDS = [EngineId(f"e{n}") for n in range(40)]
TERMS = {"wait": 0.5, "prefill": 0.25}


def scores_of(rows: Sequence[Sequence[float]], terms: tuple[str, ...] = (), unit: Unit = Unit.SECONDS) -> Scores:
    """Of engines e0, e1, ...: total, predicted_s, hit_tokens, slowness, terms, features."""
    candidates = [Candidate(EngineView(engine, EngineInfo(), 0, 0), 0.0) for engine in ENGINE_IDS[: len(rows)]]
    return Scores(candidates, array("d", [number for row in rows for number in row]), unit, terms)


def decided(booking: int, request_id: str = "r", *, engines: int = 2, **fields: object) -> Decision:
    rows = [(1.0 + n, 0.75, 16.0 * n, 1.5, *TERMS.values(), 7.0) for n in range(engines)]
    scores = scores_of(rows, tuple(TERMS))
    request = ParsedRequest(request_id, "/v1/completions", "m", prompt_of(1, 2), True, 9)
    decision = Decision(
        request, E0, "lbgr", "lowest_cost", 0.75, 128.0, 0.0, 9.0, scores, scores[0], booking, float(booking)
    )
    return replace(decision, **fields)  # type: ignore[arg-type]


def shown(entry: LoggedDecision, now: float) -> dict[str, Any]:
    """What people are shown of a logged decision, which is JSON."""
    return dict(entry.describe(now))


def test_a_decision_and_its_outcome_in_full() -> None:
    decision_log = DecisionLog(4)
    ranks = scores_of([(1.0, nan, 0.0, nan)], unit=Unit.RANK)
    decision = decided(1, "abc", shadows=(ShadowChoice("lmetric", E1, 1.0, ranks, ranks[0]),))
    decision_log.open(decision)
    (before,) = decision_log.find("abc")
    assert before.describe(3.0)["outcome"] is None
    decision_log.close(decision, Outcome(Ending.OK, 4.0, 2.0, 130, 64, 8, (BlockKey(7),)))
    (entry,) = decision_log.find("abc")
    assert entry.describe(5.5) == {
        "request_id": "abc",
        "route": "/v1/completions",
        "model": "m",
        "session": None,
        "conversation": None,
        "stream": True,
        "age_s": 4.5,
        "policy": "lbgr",
        "reason": "lowest_cost",
        "fallback": None,
        "engine": "e0",
        "tried": [],
        "prompt_tokens": 128.0,
        "expected_output_tokens": 9.0,
        "predicted_s": 0.75,
        "unit": "s",
        "engines": [
            {
                "engine": "e0",
                "chosen": True,
                "hit_tokens": 0.0,
                "terms": TERMS,
                "slowness": 1.5,
                "predicted_s": 0.75,
                "total": 1.0,
            },
            {
                "engine": "e1",
                "chosen": False,
                "hit_tokens": 16.0,
                "terms": TERMS,
                "slowness": 1.5,
                "predicted_s": 0.75,
                "total": 2.0,
            },
        ],
        "engines_left_out": 0,
        "shadows": [{"policy": "lmetric", "engine": "e1", "agrees": False, "regret_s": 1.0}],
        "outcome": {
            "ending": "ok",
            "latency_s": 3.0,
            "ttft_s": 1.0,
            "prompt_tokens": 130,
            "cached_tokens": 64,
            "output_tokens": 8,
            "stop": "unknown",
            "tool": None,
            "prediction_error_ratio": 3.0,
        },
    }


def test_what_is_no_number_is_null() -> None:
    scores = scores_of([(1.0, nan, 0.0, nan), (inf, nan, 0.0, nan)])
    decision = decided(1, scores=scores, predicted_s=None)
    decision_log = DecisionLog(4)
    decision_log.open(decision)
    decision_log.close(decision, Outcome(Ending.CANCELLED, 4.0))
    (entry,) = decision_log.find("r")
    document = shown(entry, 5.0)
    json.dumps(document, allow_nan=False)
    first, second = document["engines"]
    assert (first["total"], first["predicted_s"], first["slowness"], first["terms"]) == (1.0, None, None, {})
    assert (second["total"], second["slowness"]) == (None, None)
    assert document["outcome"]["ending"] == "cancelled"
    assert document["outcome"]["prediction_error_ratio"] is None


def test_tries_are_told_together_and_an_id_used_again_is_the_newest_request() -> None:
    decision_log = DecisionLog(10)
    first, second = decided(1), decided(3, engine=E1, tried=(E0,))
    decision_log.open(first)
    decision_log.close(first, Outcome(Ending.ENGINE_LOST, 1.5))
    decision_log.open(decided(2, "other"))
    decision_log.open(second)
    decision_log.close(second, answered(4.0))
    assert [shown(entry, 9.0)["outcome"]["ending"] for entry in decision_log.find("r")] == ["engine_lost", "ok"]
    assert decision_log.find("r")[1].tried == (E0,)
    decision_log.open(decided(4))
    assert [entry.at_s for entry in decision_log.find("r")] == [4.0]
    assert [entry.at_s for entry in decision_log.newest(99)] == [4.0, 3.0, 2.0, 1.0]
    assert [entry.at_s for entry in decision_log.newest(2)] == [4.0, 3.0]
    assert decision_log.find("nobody") == []


def test_the_oldest_go_first_with_their_names() -> None:
    decision_log = DecisionLog(3)
    kept = [decided(n, f"r{n // 2}", tried=(E0,) if n % 2 else ()) for n in range(2, 9)]
    for decision in kept:
        decision_log.open(decision)
    assert [entry.at_s for entry in decision_log.newest(99)] == [8.0, 7.0, 6.0]
    assert {name for name in ("r1", "r2", "r3", "r4") if decision_log.find(name)} == {"r3", "r4"}
    decision_log.open(decided(9, "r4", tried=(E0,)))
    assert [entry.at_s for entry in decision_log.find("r3")] == [7.0]  # its first try is out of the ring
    decision_log.close(kept[0], answered(9.0))
    assert [entry.result for entry in decision_log.newest(3)] == [None] * 3


def test_an_end_that_comes_too_late_or_twice_changes_nothing() -> None:
    decision_log = DecisionLog(2)
    decision_log.open(old := decided(1, "old"))
    decision_log.open(decided(2, "mid"))
    decision_log.open(new := decided(3, "new"))
    decision_log.close(old, answered(9.0))
    assert [entry.request_id for entry in decision_log.newest(9)] == ["new", "mid"]
    decision_log.close(new, answered(4.0))
    decision_log.close(new, Outcome(Ending.CANCELLED, 5.0))
    result = decision_log.find("new")[0].result
    assert result is not None
    assert result.ending is Ending.OK


def test_a_ledger_of_no_decisions_keeps_none() -> None:
    decision_log = DecisionLog(0)
    decision_log.open(decided(1))
    decision_log.close(decided(1), answered(2.0))
    assert decision_log.newest(9) == decision_log.find("r") == []


@pytest.mark.parametrize("chosen", ["e0", "e39"])
def test_of_many_engines_the_cheapest_are_kept_and_always_the_chosen_one(chosen: str) -> None:
    scores = scores_of([(1.0, nan, 0.0, nan)] * 40)
    decision_log = DecisionLog(2)
    decision_log.open(decided(1, scores=scores, engine=EngineId(chosen)))
    document = shown(decision_log.find("r")[0], 0.0)
    assert len(document["engines"]) == ENGINES
    assert document["engines_left_out"] == 40 - ENGINES
    assert document["engines"][0]["engine"] == chosen
    assert document["engines"][0]["chosen"]


def test_names_from_clients_are_cut() -> None:
    request = ParsedRequest("r", "/v1/completions", "m" * 999, prompt_of(1), True, None, session="s" * 999)
    decision_log = DecisionLog(2)
    decision_log.open(decided(1, request=request))
    (entry,) = decision_log.find("r")
    assert entry.session is not None
    assert len(entry.model) == len(entry.session) == NAME_CHARS


def test_ended_decisions_stay_within_the_stated_memory() -> None:
    """Prompts of 1,000 blocks, replies of 100 kB, 16 engines, 3 shadows: 3 KB each, whatever came and went."""
    decision_log, most = DecisionLog(200), 200
    gc.collect()
    tracemalloc.start()
    try:
        for n in range(1, 3 * most):
            terms = tuple(f"t{k}" for k in range(5))
            rows = [(e + n * 0.1, n * 0.3, n * 0.7, nan, *(n * 0.9 + k for k in range(5))) for e in range(16)]
            scores = scores_of(rows, terms)
            request = ParsedRequest(f"request-{n:032}", "/v1/completions", "m", prompt_of(*range(1000)), True, None)
            shadows = tuple(ShadowChoice(policy, E1, n * 0.5, scores, scores[0]) for policy in ("a", "b", "c"))
            expectation = PrefixExpectation(9, None, tuple((k, k, k) for k in range(50)))
            decision = decided(n, request=request, scores=scores, shadows=shadows, expectation=expectation)
            decision_log.open(decision)
            reply = (BlockKey(n),) * 10_000  # of one number, since tracing each of as many takes half a minute
            decision_log.close(decision, Outcome(Ending.OK, n + 1.0, None, 9, 9, 9, reply))
        del decision, request, shadows, expectation, scores, reply
        gc.collect()
        used, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(decision_log.newest(9999)) == most
    assert used < 3000 * most


def test_a_hundred_thousand_requests_leave_the_ledger_at_its_cap() -> None:
    """What one of the kept ones weighs, the test above says."""
    router = router_with(2, "round_robin", ledger_decisions=500, prefix_index_blocks=100)
    prompt = prompt_of(1)
    for n in range(100_000):
        request = ParsedRequest(f"request {n}", "/v1/completions", "m", prompt, False, None)
        decision = router.route(request, n * 0.01)
        router.complete(decision, answered(n * 0.01 + 0.005))
    assert [entry.request_id for entry in router.newest_decisions(10**9)] == [
        f"request {n}" for n in range(99_999, 99_499, -1)
    ]
    assert all(entry.result for entry in router.newest_decisions(10**9))
    assert sum(bool(router.find_decisions(f"request {n}")) for n in range(100_000)) == 500
