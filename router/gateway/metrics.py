"""The metrics of the gateway, in a registry that the caller owns.

Labels are routes, ids and names of clients' keys, never raw paths or URLs. What the router keeps (health, requests in
flight, size of the index) is read from it when Prometheus scrapes, so that nothing is counted in two places. Each
request of a client is counted once, however it ended and however many engines were tried: its `engine` and `policy` are
those of the last try, or `none` if there was no try.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from typing import Generic, TypeVar

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from router.core.status import RouterStatus
from router.errors import RetryReason
from router.gateway.exchange import Exchange
from router.gateway.tenants import ClientKey
from router.types import Ending, Outcome, Placement

NONE = "none"
REQUEST_BUCKETS_S = (0.05, 0.1, 0.25, 0.5, 1, 2, 4, 8, 15, 30, 60, 120, 240, 480, 960, 1800)
TTFT_BUCKETS_S = (0.01, 0.025, 0.05, 0.1, 0.2, 0.4, 0.8, 1.5, 3, 6, 12, 30, 60, 120, 240)
DECISION_BUCKETS_S = (10e-6, 20e-6, 30e-6, 50e-6, 75e-6, 100e-6, 150e-6, 250e-6, 500e-6, 1e-3, 2.5e-3, 10e-3, 0.1)
OVERHEAD_BUCKETS_S = (100e-6, 200e-6, 300e-6, 500e-6, 750e-6, 1e-3, 1.5e-3, 2.5e-3, 5e-3, 10e-3, 25e-3, 0.1, 0.5, 2)
ERROR_BUCKETS_S = (-60, -15, -5, -2, -1, -0.5, -0.2, -0.1, -0.05, 0, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 15, 60)
ERROR_BUCKETS_RATIO = (-0.95, -0.9, -0.75, -0.5, -0.33, -0.2, -0.1, -0.05, 0, 0.05, 0.1, 0.2, 0.5, 1, 2, 4, 9, 19)


M = TypeVar("M", Counter, Histogram)


class Children(Generic[M]):
    """A metric as a function of the values of its labels. The library's own `labels` costs three times as much."""

    def __init__(self, metric: M) -> None:
        self._metric: M = metric
        self._children: dict[tuple[str, ...], M] = {}

    def __call__(self, *values: str) -> M:
        child = self._children.get(values)
        if child is None:
            child = self._children[values] = self._metric.labels(*values) if values else self._metric
        return child

    def keep_only(self, engines: Container[str]) -> None:
        """Forget the children whose label `engine` names none of these."""
        place = self._metric._labelnames.index("engine")
        for values in [values for values in self._children if not _is_present(values[place], engines)]:
            self._metric.remove(*values)
            del self._children[values]


def _is_present(engine: str, engines: Container[str]) -> bool:
    return engine == NONE or engine in engines


class PresentEngines(Collector):
    """What a registry collects, without the samples of engines that are not among `engines`.

    Their last requests may be counted after they have left, and the files in which edges count keep everything.
    """

    def __init__(self, registry: CollectorRegistry, engines: Container[str]) -> None:
        self._registry, self._engines = registry, engines

    def collect(self) -> Iterable[Metric]:
        for metric in self._registry.collect():
            metric.samples = [s for s in metric.samples if _is_present(s.labels.get("engine", NONE), self._engines)]
            yield metric


class Metrics:
    """All counters and histograms of the data path. A registry takes only one of these."""

    def __init__(self, registry: CollectorRegistry) -> None:
        def counter(name: str, help: str, *labels: str) -> Children[Counter]:
            return Children(Counter(f"leafcutter_{name}", help, labels, registry=registry))

        def histogram(name: str, help: str, buckets: tuple[float, ...], *labels: str) -> Children[Histogram]:
            return Children(Histogram(f"leafcutter_{name}", help, labels, registry=registry, buckets=buckets))

        self.registry = registry
        self._requests = counter(
            "requests", "Client requests by how they ended.", "route", "engine", "policy", "ending"
        )
        self._request_s = histogram(
            "request_seconds", "From arrival to the end of the answer.", REQUEST_BUCKETS_S, "route"
        )
        self._ttft_s = histogram("ttft_seconds", "From arrival to the first token.", TTFT_BUCKETS_S, "route")
        self._overhead_s = histogram(
            "overhead_seconds", "What the gateway itself took until an answer began.", OVERHEAD_BUCKETS_S, "route"
        )
        self._decision_s = histogram("decision_seconds", "Time to choose an engine.", DECISION_BUCKETS_S)
        self._decisions = counter("decisions", "Engines chosen, by who chose and why.", "policy", "reason")
        self._fallbacks = counter(
            "fallbacks", "Decisions in which a policy was not heeded, by why.", "policy", "reason"
        )
        self._prompt = counter("prompt_tokens", "Prompt tokens, as engines count them.", "engine")
        self._cached = counter("cached_tokens", "Prompt tokens found in an engine's prefix cache.", "engine")
        self._output = counter("output_tokens", "Generated tokens.", "engine")
        self._error_s = histogram(
            "prediction_error_seconds", "Predicted less actual end-to-end latency.", ERROR_BUCKETS_S, "engine"
        )
        self._error_ratio = histogram(
            "prediction_error_ratio",
            "(Actual less predicted) over predicted latency: above 0 it took longer than predicted.",
            ERROR_BUCKETS_RATIO,
            "engine",
        )
        self._bounds = counter(
            "slo",
            "Answers to requests with a bound of their own (ttft, tpot), by whether it was kept.",
            "policy",
            "bound",
            "kept",
        )
        self._key_requests = counter("key_requests", "Requests of each client's key by ending.", "key", "ending")
        self._key_tokens = counter(
            "key_tokens", "Tokens of each client's key: prompt, cached (a part of prompt) and output.", "key", "kind"
        )
        self._key_limited = counter("key_limited", "Requests refused by a limit of their key.", "key", "limit")
        self._retries = counter("retries", "Tries on another engine, by why the last one failed.", "reason")
        self._waiting = Gauge(
            "leafcutter_queue_length",
            "Requests that wait for their turn.",
            registry=registry,
            multiprocess_mode="livesum",
        )
        self._waited_s = histogram("queue_seconds", "Time in the queue, of requests that had to wait.", TTFT_BUCKETS_S)
        self._refused = counter(
            "refusals", "Requests and connections refused before anything was done for them.", "reason"
        )

    def waiting(self, change: int) -> None:
        """So many more requests wait for their turn."""
        self._waiting.inc(change)

    def waited(self, waited_s: float) -> None:
        """A request waits no longer, whatever came of it."""
        self._waited_s().observe(waited_s)

    def refused(self, reason: str) -> None:
        """A client was turned away."""
        self._refused(reason).inc()

    def keep_only(self, engines: Container[str]) -> None:
        """Forget what was counted of engines that are not among these."""
        for metric in (self._requests, self._prompt, self._cached, self._output, self._error_s, self._error_ratio):
            metric.keep_only(engines)

    def decided(self, placement: Placement, elapsed_s: float) -> None:
        """An engine was chosen. elapsed_s: how long the choice took."""
        self._decision_s().observe(elapsed_s)
        self._decisions(placement.policy, placement.reason).inc()
        if placement.fallback is not None:
            self._fallbacks(placement.policy, placement.reason).inc()

    def retried(self, reason: RetryReason) -> None:
        """A request is tried on another engine. reason: why the last try failed."""
        self._retries(reason.value).inc()

    def completed(self, placement: Placement, outcome: Outcome) -> None:
        """One try on one engine has ended."""
        engine = placement.engine
        for metric, tokens in (
            (self._prompt, outcome.prompt_tokens),
            (self._cached, outcome.cached_tokens),
            (self._output, outcome.output_tokens),
        ):
            if tokens is not None:
                metric(engine).inc(tokens)
        if outcome.ending is Ending.OK and placement.predicted_s is not None and placement.request.generates:
            actual_s = outcome.done_s - placement.dispatched_s
            self._error_s(engine).observe(placement.predicted_s - actual_s)
            if placement.predicted_s > 0:
                self._error_ratio(engine).observe((actual_s - placement.predicted_s) / placement.predicted_s)

    def limited(self, key: ClientKey, limit: str) -> None:
        """A request was refused. limit: requests, tokens or concurrency."""
        self._key_limited(key.name, limit).inc()

    def ended(self, exchange: Exchange, outcome: Outcome) -> None:
        """A client's request has ended. outcome: how it ended for the client."""
        placement, ending = exchange.placement, outcome.ending
        engine, policy = (placement.engine, placement.policy) if placement else (NONE, NONE)
        self._requests(exchange.route, engine, policy, ending.value).inc()
        self._request_s(exchange.route).observe(outcome.done_s - exchange.arrived_s)
        if exchange.overhead_s is not None:
            self._overhead_s(exchange.route).observe(exchange.overhead_s)
        if outcome.first_token_s is not None:
            self._ttft_s(exchange.route).observe(outcome.first_token_s - exchange.arrived_s)
        if key := exchange.client.key.name:
            self._key_requests(key, ending.value).inc()
            for kind, tokens in (
                ("prompt", outcome.prompt_tokens),
                ("cached", outcome.cached_tokens),
                ("output", outcome.output_tokens),
            ):
                if tokens:
                    self._key_tokens(key, kind).inc(tokens)
        for bound, kept in _bounds_kept(exchange, outcome):
            self._bounds(policy, bound, str(kept).lower()).inc()


def _bounds_kept(exchange: Exchange, outcome: Outcome) -> Iterator[tuple[str, bool]]:
    """Each bound (`ttft`, `tpot`) that the client set on its request, and whether the answer kept it.

    Only complete answers whose first token was seen are judged.
    """
    first_s = outcome.first_token_s
    if exchange.request is None or outcome.ending is not Ending.OK or first_s is None:
        return
    request = exchange.request.parsed
    if request.slo_ttft_s is not None:
        yield "ttft", first_s - exchange.arrived_s <= request.slo_ttft_s
    tokens = outcome.output_tokens if request.choices == 1 else None
    if request.slo_tpot_s is not None and tokens and tokens > 1:
        yield "tpot", (outcome.done_s - first_s) / (tokens - 1) <= request.slo_tpot_s


class RouterCollector(Collector):
    """Reads the state of the router when Prometheus scrapes."""

    def __init__(self, status: Callable[[], RouterStatus]) -> None:
        self._status = status

    def collect(self) -> Iterable[Metric]:
        status = self._status()
        yield from _engine_metrics(status)
        index = GaugeMetricFamily("leafcutter_prefix_index_blocks", "Blocks in the router's prefix index.")
        index.add_metric([], status.index_blocks)
        yield index
        yield from _session_metrics(status)
        yield from _policy_metrics(status)
        yield from _shadow_metrics(status)


def _engine_metrics(status: RouterStatus) -> Iterable[Metric]:
    in_flight = GaugeMetricFamily("leafcutter_in_flight", "Requests at an engine now.", labels=["engine"])
    healthy = GaugeMetricFamily("leafcutter_engine_healthy", "1: is well. 0: is left out.", labels=["engine"])
    draining = GaugeMetricFamily(
        "leafcutter_engine_draining", "1: gets no new requests, because an operator wants it so.", labels=["engine"]
    )
    drift = GaugeMetricFamily(
        "leafcutter_prediction_drift", "1: latency predictions err to one side (drift_bound).", labels=["engine"]
    )
    share = GaugeMetricFamily(
        "leafcutter_engine_ejected",
        "1: gets no requests for a while, because it fails. 0.5: its share grows again.",
        labels=["engine"],
    )
    ejections = CounterMetricFamily(
        "leafcutter_engine_ejections", "Times that an engine was left out because it failed.", labels=["engine"]
    )
    rate = GaugeMetricFamily(
        "leafcutter_engine_failure_rate", "Running rate of requests that an engine failed, 0 to 1.", labels=["engine"]
    )
    for engine in status.engines.values():
        share.add_metric([engine.engine], {"full": 0.0, "returning": 0.5}.get(engine.share, 1.0))
        ejections.add_metric([engine.engine], engine.ejections)
        rate.add_metric([engine.engine], engine.failure_rate)
        in_flight.add_metric([engine.engine], engine.in_flight)
        healthy.add_metric([engine.engine], float(engine.healthy))
        draining.add_metric([engine.engine], float(engine.draining))
        if engine.drifts is not None:
            drift.add_metric([engine.engine], float(engine.drifts))
    return in_flight, healthy, draining, drift, share, ejections, rate


def _session_metrics(status: RouterStatus) -> Iterable[Metric]:
    sessions = status.sessions
    yield GaugeMetricFamily("leafcutter_sessions", "Conversations that the router knows.", sessions.known)
    yield GaugeMetricFamily("leafcutter_sessions_running", "Those with a request at an engine now.", sessions.running)
    yield CounterMetricFamily(
        "leafcutter_sessions_forgotten", "Conversations forgotten to make room for others.", sessions.forgotten
    )
    holding = status.holding
    yield GaugeMetricFamily("leafcutter_held_requests", "Requests that wait for room in the caches.", holding.held)
    released = CounterMetricFamily(
        "leafcutter_holds", "Requests that waited so and went on, by the reason why.", labels=["reason"]
    )
    for reason, count in holding.released.items():
        released.add_metric([reason], count)
    yield released
    yield CounterMetricFamily("leafcutter_hold_seconds", "How long they waited in all.", holding.seconds)
    error = GaugeMetricFamily(
        "leafcutter_session_return_error", "Running mean of |ln(actual / predicted)| of the times sessions stay away."
    )
    if sessions.error is not None:
        error.add_metric([], sessions.error)
    yield error


def _policy_metrics(status: RouterStatus) -> Iterable[Metric]:
    share = GaugeMetricFamily(
        "leafcutter_policy_share", "Part of the decisions that a policy makes; 0: a shadow.", labels=["policy"]
    )
    faults = CounterMetricFamily(
        "leafcutter_policy_faults", "A policy raised, or gave a cost that is no number.", labels=["policy"]
    )
    seconds = CounterMetricFamily(
        "leafcutter_policy_seconds", "Time that a policy took to score and to learn.", labels=["policy"]
    )
    for arm in status.arms:
        share.add_metric([arm.policy], arm.share)
        faults.add_metric([arm.policy], arm.faults)
        seconds.add_metric([arm.policy], arm.seconds)
    return share, faults, seconds


def _shadow_metrics(status: RouterStatus) -> Iterable[Metric]:
    labels = ["policy", "shadow"]
    decisions = CounterMetricFamily(
        "leafcutter_shadow_decisions", "Decisions of `policy` that `shadow` scored too.", labels=labels
    )
    agreed = CounterMetricFamily("leafcutter_shadow_agreements", "Of these, the same engine chosen.", labels=labels)
    regret = CounterMetricFamily(
        "leafcutter_shadow_regret_seconds",
        "What the shadow's choices would have cost more by the policy's scores, where those are seconds.",
        labels=labels,
    )
    for each in status.agreements:
        decisions.add_metric([each.policy, each.shadow], each.decisions)
        agreed.add_metric([each.policy, each.shadow], each.agreed)
        if each.regret_s is not None:
            regret.add_metric([each.policy, each.shadow], each.regret_s)
    return decisions, agreed, regret


class TraceCollector(Collector):
    """Counts what the recording did with each request. counts: returns `TraceWriter.counts`."""

    def __init__(self, counts: Callable[[], Mapping[str, int]]) -> None:
        self._counts = counts

    def collect(self) -> Iterable[Metric]:
        requests = CounterMetricFamily(
            "leafcutter_record_requests", "Ended requests by what the recording did with them.", labels=["result"]
        )
        for result, count in self._counts().items():
            requests.add_metric([result], count)
        yield requests
