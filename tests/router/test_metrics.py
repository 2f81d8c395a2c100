from __future__ import annotations

from prometheus_client import CollectorRegistry

from router.blocks import chain
from router.metrics import ERROR_BUCKETS_S, REQUEST_BUCKETS_S, FleetCollector, Metrics, Record
from router.types import Decision, Ending, EngineId, Outcome, ParsedRequest

ENGINE = EngineId("engine-0")
REQUEST = ParsedRequest("r", "/v1/completions", "m", chain(b"", b"", 4), stream=True, max_tokens=None)
DECISION = Decision(REQUEST, ENGINE, "lbgr", "lowest_cost", 2.0, 9.0, 0.0, 3.0, (), 1, dispatched_s=10.0)


def test_a_request_is_counted_with_its_decision() -> None:
    registry = CollectorRegistry()
    record = Record(REQUEST.route, 9.5, Ending.OK, DECISION, first_token_s=11.0)
    Metrics(registry).ended(record, 13.5)
    labels = {"route": REQUEST.route, "engine": ENGINE, "policy": "lbgr", "ending": "ok"}
    assert registry.get_sample_value("leafcutter_requests_total", labels) == 1
    assert registry.get_sample_value("leafcutter_request_seconds_sum", {"route": REQUEST.route}) == 4.0
    assert registry.get_sample_value("leafcutter_ttft_seconds_sum", {"route": REQUEST.route}) == 1.5


def test_a_request_that_reached_no_engine_is_counted_too() -> None:
    registry = CollectorRegistry()
    Metrics(registry).ended(Record(REQUEST.route, 1.0, Ending.REJECTED), 2.0)
    labels = {"route": REQUEST.route, "engine": "none", "policy": "none", "ending": "rejected"}
    assert registry.get_sample_value("leafcutter_requests_total", labels) == 1
    assert registry.get_sample_value("leafcutter_ttft_seconds_count", {"route": REQUEST.route}) is None


def test_tokens_and_the_signed_error_of_the_prediction() -> None:
    registry = CollectorRegistry()
    metrics = Metrics(registry)
    metrics.completed(DECISION, Outcome(Ending.OK, 13.0, prompt_tokens=9, cached_tokens=4, output_tokens=3))
    metrics.completed(DECISION, Outcome(Ending.OK, 11.5))
    metrics.completed(DECISION, Outcome(Ending.CANCELLED, 99.0, prompt_tokens=1))
    labels = {"engine": ENGINE}
    assert registry.get_sample_value("leafcutter_prompt_tokens_total", labels) == 10
    assert registry.get_sample_value("leafcutter_cached_tokens_total", labels) == 4
    assert registry.get_sample_value("leafcutter_output_tokens_total", labels) == 3
    assert registry.get_sample_value("leafcutter_prediction_error_seconds_count", labels) == 2
    for bound, count in (("-2.0", 0), ("-1.0", 1), ("0.2", 1), ("0.5", 2)):  # 2 - 3 s and 2 - 1.5 s
        bucket = {"engine": ENGINE, "le": bound}
        assert registry.get_sample_value("leafcutter_prediction_error_seconds_bucket", bucket) == count


def test_buckets_reach_far_enough() -> None:
    assert max(REQUEST_BUCKETS_S) >= 240
    assert min(ERROR_BUCKETS_S) < 0 < max(ERROR_BUCKETS_S)


def test_the_fleet_is_read_when_scraped() -> None:
    registry = CollectorRegistry()
    states = [(ENGINE, 3, True)]
    registry.register(FleetCollector(lambda: states, lambda: 7))
    assert registry.get_sample_value("leafcutter_in_flight", {"engine": ENGINE}) == 3
    states[:] = [(EngineId("engine-1"), 0, False)]
    assert registry.get_sample_value("leafcutter_in_flight", {"engine": ENGINE}) is None
    assert registry.get_sample_value("leafcutter_engine_healthy", {"engine": "engine-1"}) == 0
    assert registry.get_sample_value("leafcutter_prefix_index_blocks") == 7
