from __future__ import annotations

from dataclasses import replace

from prometheus_client import CollectorRegistry

from router.core.status import AgreementStatus, ArmStatus, EngineStatus
from router.gateway.metrics import (
    ERROR_BUCKETS_RATIO,
    ERROR_BUCKETS_S,
    REQUEST_BUCKETS_S,
    Metrics,
    RouterCollector,
    TraceCollector,
)
from router.types import Ending, EngineId, EngineInfo, Outcome
from tests.support.exchanges import REQUEST, exchange_of, status_of
from tests.support.virtual_fleet import decided

ENGINE = EngineId("engine-0")
DECISION = decided(REQUEST, ENGINE, predicted_s=2.0, prompt_tokens=9.0, output_tokens=3.0, dispatched_s=10.0)


def test_a_request_is_counted_with_its_decision() -> None:
    registry = CollectorRegistry()
    Metrics(registry).ended(exchange_of(9.5, DECISION), Outcome(Ending.OK, 13.5, 11.0))
    labels = {"route": REQUEST.route, "engine": ENGINE, "policy": "lbgr", "ending": "ok"}
    assert registry.get_sample_value("leafcutter_requests_total", labels) == 1
    assert registry.get_sample_value("leafcutter_request_seconds_sum", {"route": REQUEST.route}) == 4.0
    assert registry.get_sample_value("leafcutter_ttft_seconds_sum", {"route": REQUEST.route}) == 1.5


def test_a_request_that_reached_no_engine_is_counted_too() -> None:
    registry = CollectorRegistry()
    Metrics(registry).ended(exchange_of(1.0, None), Outcome(Ending.REJECTED, 2.0))
    labels = {"route": REQUEST.route, "engine": "none", "policy": "none", "ending": "rejected"}
    assert registry.get_sample_value("leafcutter_requests_total", labels) == 1
    assert registry.get_sample_value("leafcutter_ttft_seconds_count", {"route": REQUEST.route}) is None


def test_bounds_that_clients_set_are_counted_as_kept_or_not() -> None:
    registry = CollectorRegistry()
    metrics = Metrics(registry)
    request = replace(REQUEST, slo_ttft_s=1.0, slo_tpot_s=0.5)
    decision = replace(DECISION, request=request)

    def end(first_s: float | None, output_tokens: int | None, ending: Ending = Ending.OK) -> None:
        metrics.ended(exchange_of(10.0, decision), Outcome(ending, 14.0, first_s, output_tokens=output_tokens))

    end(11.0, 7)  # after 1.0 s, then six tokens in 3 s
    end(11.5, 4)  # after 1.5 s, then three in 2.5 s
    end(10.5, 1)  # no later token
    end(None, 9)  # unstreamed: nobody saw
    end(10.5, 9, Ending.CANCELLED)
    counts = {
        (bound, kept): registry.get_sample_value(
            "leafcutter_slo_total", {"policy": "lbgr", "bound": bound, "kept": kept}
        )
        for bound in ("ttft", "tpot")
        for kept in ("true", "false")
    }
    assert counts == {("ttft", "true"): 2, ("ttft", "false"): 1, ("tpot", "true"): 1, ("tpot", "false"): 1}


def test_tokens_and_the_signed_error_of_the_prediction() -> None:
    registry = CollectorRegistry()
    metrics = Metrics(registry)
    metrics.completed(DECISION, Outcome(Ending.OK, 13.0, prompt_tokens=9, cached_tokens=4, output_tokens=3))
    metrics.completed(DECISION, Outcome(Ending.OK, 11.5))
    metrics.completed(DECISION, Outcome(Ending.CANCELLED, 99.0, prompt_tokens=1))
    labels = {"engine": str(ENGINE)}
    assert registry.get_sample_value("leafcutter_prompt_tokens_total", labels) == 10
    assert registry.get_sample_value("leafcutter_cached_tokens_total", labels) == 4
    assert registry.get_sample_value("leafcutter_output_tokens_total", labels) == 3
    assert registry.get_sample_value("leafcutter_prediction_error_seconds_count", labels) == 2
    for bound, count in (("-2.0", 0), ("-1.0", 1), ("0.2", 1), ("0.5", 2)):  # 2 - 3 s and 2 - 1.5 s
        bucket = {"engine": ENGINE, "le": bound}
        assert registry.get_sample_value("leafcutter_prediction_error_seconds_bucket", bucket) == count


def test_the_error_of_the_prediction_against_it() -> None:
    registry = CollectorRegistry()
    metrics = Metrics(registry)
    metrics.completed(DECISION, Outcome(Ending.OK, 13.0))  # 3 s for 2 s
    metrics.completed(DECISION, Outcome(Ending.OK, 11.0))  # 1 s for 2 s
    metrics.completed(DECISION, Outcome(Ending.CANCELLED, 99.0))
    metrics.completed(replace(DECISION, predicted_s=None), Outcome(Ending.OK, 99.0))
    metrics.completed(replace(DECISION, predicted_s=0.0), Outcome(Ending.OK, 99.0))
    assert registry.get_sample_value("leafcutter_prediction_error_ratio_count", {"engine": ENGINE}) == 2
    for bound, count in (("-0.75", 0), ("-0.5", 1), ("0.2", 1), ("0.5", 2)):
        bucket = {"engine": ENGINE, "le": bound}
        assert registry.get_sample_value("leafcutter_prediction_error_ratio_bucket", bucket) == count


def test_decisions_are_counted_by_who_made_them_and_why() -> None:
    registry = CollectorRegistry()
    metrics = Metrics(registry)
    metrics.decided(DECISION, 1e-5)
    metrics.decided(replace(DECISION, reason="only_engine"), 1e-5)
    for reason in ("lowest_cost", "only_engine"):
        labels = {"policy": "lbgr", "reason": reason}
        assert registry.get_sample_value("leafcutter_decisions_total", labels) == 1
    assert registry.get_sample_value("leafcutter_decision_seconds_count") == 2


def test_decisions_of_a_policy_that_is_not_heeded_are_counted() -> None:
    registry = CollectorRegistry()
    metrics = Metrics(registry)
    metrics.decided(DECISION, 1e-5)
    assert registry.get_sample_value("leafcutter_fallbacks_total", {"policy": "lbgr", "reason": "lowest_cost"}) is None
    metrics.decided(replace(DECISION, reason="cold", fallback="lmetric"), 1e-5)
    assert registry.get_sample_value("leafcutter_fallbacks_total", {"policy": "lbgr", "reason": "cold"}) == 1


def test_the_experiment_is_read_when_scraped() -> None:
    registry = CollectorRegistry()
    status = [status_of(arms=(ArmStatus("round_robin", 0.75, 2, 1.5),))]
    registry.register(RouterCollector(lambda: status[-1]))
    value = registry.get_sample_value
    for name, expected in (("policy_share", 0.75), ("policy_faults_total", 2), ("policy_seconds_total", 1.5)):
        assert value(f"leafcutter_{name}", {"policy": "round_robin"}) == expected
    first, second = AgreementStatus("lbgr", "lmetric", 4, 3, 0.5), AgreementStatus("lmetric", "lbgr", 1, 1, None)
    status.append(status_of(agreements=(first, second)))
    labels = {"policy": "lbgr", "shadow": "lmetric"}
    assert value("leafcutter_shadow_decisions_total", labels) == 4
    assert value("leafcutter_shadow_agreements_total", labels) == 3
    assert value("leafcutter_shadow_regret_seconds_total", labels) == 0.5
    assert value("leafcutter_shadow_regret_seconds_total", {"policy": "lmetric", "shadow": "lbgr"}) is None


def test_what_is_recorded_is_counted_by_result() -> None:
    registry = CollectorRegistry()
    registry.register(TraceCollector(lambda: {"written": 3, "dropped": 0}))
    for result, count in (("written", 3), ("dropped", 0)):
        assert registry.get_sample_value("leafcutter_record_requests_total", {"result": result}) == count


def test_buckets_reach_far_enough() -> None:
    assert min(ERROR_BUCKETS_RATIO) > -1 < 0 < max(ERROR_BUCKETS_RATIO)
    assert max(REQUEST_BUCKETS_S) >= 240
    assert min(ERROR_BUCKETS_S) < 0 < max(ERROR_BUCKETS_S)


def test_the_engines_are_read_when_scraped() -> None:
    registry = CollectorRegistry()
    status = [status_of(EngineStatus(ENGINE, True, EngineInfo(), 3, 0.6, True))]
    registry.register(RouterCollector(lambda: status[-1]))
    assert registry.get_sample_value("leafcutter_in_flight", {"engine": ENGINE}) == 3
    assert registry.get_sample_value("leafcutter_prediction_drift", {"engine": ENGINE}) == 1
    status.append(status_of(EngineStatus(EngineId("engine-1"), False, EngineInfo(), 0, None, None)))
    assert registry.get_sample_value("leafcutter_in_flight", {"engine": ENGINE}) is None
    assert registry.get_sample_value("leafcutter_engine_healthy", {"engine": "engine-1"}) == 0
    assert registry.get_sample_value("leafcutter_prediction_drift", {"engine": "engine-1"}) is None
    assert registry.get_sample_value("leafcutter_prefix_index_blocks") == 7
