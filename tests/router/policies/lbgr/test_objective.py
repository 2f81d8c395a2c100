"""The objectives: what they cost, and what they change."""

from __future__ import annotations

from dataclasses import replace

import pytest

from router.config import Config, configure
from router.policies.base import RoutingContext
from router.policies.lbgr.objective import miss
from router.policies.lbgr.policy import Lbgr
from router.types import Booking, Candidate, EngineId, EngineInfo, EngineView
from tests.support.virtual_fleet import ask_for

NEAR, FAR = EngineId("near"), EngineId("far")


def weigh(config: Config, ttft_s: float | None = None, tpot_s: float | None = None) -> dict[str, dict[str, float]]:
    """A prompt of 2,000 tokens: all cached on an engine with a queue of half a second, none on an idle one."""
    head = Booking(1, NEAR, 10.0, True, 5000.0, 0.0, 50.0, None)
    near = EngineView(NEAR, EngineInfo(), 1, 1, 5000.0, 5000.0, 50_000.0, head, 10.0)
    far = EngineView(FAR, EngineInfo(), 0, 0, 0.0, 0.0, 50_000.0)
    request = replace(ask_for(1), slo_ttft_s=ttft_s, slo_tpot_s=tpot_s)
    scores = Lbgr(config.policies.lbgr).choose(
        RoutingContext(request, 2000.0, 50.0, 10.0, 0.0), [Candidate(near, 1999.0), Candidate(far, 0.0)]
    )
    return {score.engine: {"total": score.total, **score.terms} for score in scores}


def test_the_chance_to_miss_is_even_at_the_bound_and_saturates() -> None:
    assert miss(1.0) == 0.5
    assert miss(0.5) == pytest.approx(1 / 17)
    assert 0.999 < miss(10.0) < miss(1e9) <= 1.0
    assert miss(0.0) == 0.0


def test_a_bound_is_priced_by_the_chance_to_miss_it() -> None:
    config = configure(lbgr_objective="slo", lbgr_slo_weight=3.0)
    scores = weigh(config, ttft_s=0.3)
    first_s = sum(scores[NEAR][term] for term in ("wait", "room", "prefill"))
    assert scores[NEAR]["objective"] == pytest.approx(3.0 * 0.3 * miss(first_s / 0.3))
    later = weigh(config, tpot_s=0.02)[FAR]
    # 50 tokens in 50 times 20 ms: 49 later ones, a hair above 20 ms each
    assert later["objective"] == pytest.approx(3.0 * 49 * 0.02 * miss(later["decode"] / 49 / 0.02))


def test_a_tight_bound_leaves_the_queue_for_an_idle_engine_and_a_loose_one_does_not() -> None:
    def best(ttft_s: float | None, objective: str = "slo") -> str:
        config = configure(lbgr_objective=objective, lbgr_duplication_weight=6.0, lbgr_slo_weight=4.0)
        scores = weigh(config, ttft_s=ttft_s)
        return min(scores, key=lambda engine: scores[engine]["total"])

    assert best(None) == NEAR
    assert best(5.0) == NEAR
    assert best(0.35) == FAR
    assert best(0.35, "e2e") == NEAR  # bounds are only heeded if asked for
    assert best(0.01) == NEAR  # lost anyway


def test_requests_without_bounds_cost_the_same_under_slo() -> None:
    assert weigh(configure(lbgr_objective="slo")) == weigh(Config())


def test_ttft_weighs_the_first_token_more_and_decoding_as_before() -> None:
    usual, soon = weigh(Config())[FAR], weigh(configure(lbgr_objective="ttft"))[FAR]
    assert soon["first_token"] == pytest.approx(4 * usual["first_token"])
    assert soon["decode"] == usual["decode"]
    kept = weigh(configure(lbgr_objective="ttft", lbgr_first_token_weight=9.0))[FAR]
    assert kept["first_token"] == pytest.approx(9 * usual["first_token"])
