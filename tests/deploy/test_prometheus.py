"""The scrape config, the alerts and the dashboard's queries, tried on a real Prometheus where one is installed."""

from __future__ import annotations

import contextlib
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
import yaml
from prometheus_client import CollectorRegistry, generate_latest

from engine_patches.exporter import Exporter
from engine_patches.orders import ORDERS
from router.core.status import AgreementStatus, ArmStatus, EngineStatus
from router.errors import RetryReason
from router.gateway.metrics import Metrics, RouterCollector
from router.types import Ending, EngineId, EngineInfo, Outcome
from tests.support.deploy_files import DEPLOY, prometheus, queries, targets
from tests.support.exchanges import REQUEST, exchange_of, status_of
from tests.support.virtual_fleet import decided

needs_prometheus = pytest.mark.skipif(shutil.which("prometheus") is None, reason="prometheus is not installed")
needs_promtool = pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")
CONFIG = DEPLOY / "prometheus/prometheus.yml"
# As vLLM shows them: its label `engine` is a data-parallel rank.
VLLM_PAGE = b"".join(
    b'%s{engine="0",model_name="m"} 1\n' % name
    for name in (
        b"vllm:num_requests_running",
        b"vllm:num_requests_waiting",
        b"vllm:kv_cache_usage_perc",
        b"vllm:prefix_cache_queries_total",
        b"vllm:prefix_cache_hits_total",
    )
)
UP, DOWN = "1x20", "0x20"  # promtool's notation: the value, then 20 more of it, one a minute


class Pool(SimpleNamespace):
    """As much of the adapter's pool as the exporter reads."""


def gateway_page() -> bytes:
    """The gateway's metrics after one request to each engine and one retry."""
    registry = CollectorRegistry()
    metrics = Metrics(registry)
    names = [EngineId(target.split(":")[0]) for target in targets()["vllm"]]
    for name in names:
        request = replace(REQUEST, slo_ttft_s=0.4)
        decision = decided(request, name, predicted_s=1.0)
        outcome = Outcome(Ending.OK, 2.0, 0.5, prompt_tokens=9, cached_tokens=3, output_tokens=4)
        metrics.decided(decision, 1e-4)
        metrics.completed(decision, outcome)
        metrics.ended(exchange_of(0.0, decision), outcome)
    metrics.retried(RetryReason.CONNECT)
    engines = [EngineStatus(name, True, EngineInfo(), 1, 0.1, False) for name in names]
    arms, agreements = (ArmStatus("lbgr", 1.0, 0, 0.1),), (AgreementStatus("lbgr", "lmetric", 2, 1, 0.5),)
    status = status_of(*engines, arms=arms, agreements=agreements)
    registry.register(RouterCollector(lambda: status))
    return generate_latest(registry)


def eviction_page() -> bytes:
    pool = Pool(order=ORDERS["rlt"](8), hash_block_size=16, num_gpu_blocks=8)
    exporter = Exporter(0, "", "0.32.0", serve=lambda *_: None)
    exporter.show(pool)
    registry = CollectorRegistry()
    registry.register(exporter)
    return generate_latest(registry)


@contextlib.contextmanager
def hosts() -> Iterator[str]:
    """The URL of a proxy behind which every host of the scrape config answers."""
    by_job = {"gateway": gateway_page(), "vllm": VLLM_PAGE, "eviction": eviction_page()}
    pages = {f"http://{target}/metrics": by_job[job] for job, listed in targets().items() for target in listed}

    class Proxy(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            page = pages.get(self.path)
            self.send_response(404 if page is None else 200)
            self.send_header("content-type", "text/plain; version=0.0.4")
            self.end_headers()
            self.wfile.write(page or b"")

        def log_message(self, *_: object) -> None:
            """Silent."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Proxy) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def api(tmp_path: Path) -> Iterator[httpx.Client]:
    """A Prometheus with the shipped scrape config, sent through the proxy and hurried."""
    with hosts() as proxy, socket.socket() as free:
        config = prometheus()
        config["global"]["scrape_interval"] = "250ms"
        config["rule_files"] = []
        for job in config["scrape_configs"]:
            job["proxy_url"] = proxy
        file = tmp_path / "prometheus.yml"
        file.write_text(yaml.safe_dump(config))
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
        free.close()
        command = [f"--config.file={file}", f"--storage.tsdb.path={tmp_path}/data", f"--web.listen-address={address}"]
        with (tmp_path / "log").open("wb") as log:
            process = subprocess.Popen(["prometheus", *command], stdout=log, stderr=log)
        try:
            with httpx.Client(base_url=f"http://{address}/api/v1", transport=httpx.HTTPTransport(retries=5)) as client:
                wait_until_ready(client, f"http://{address}/-/ready")
                yield client
        finally:
            process.terminate()
            process.wait(20)


def wait_until_ready(client: httpx.Client, url: str) -> None:
    """Prometheus listens before it can answer, and says 503 until it can."""
    end = time.monotonic() + 30
    while not (answer := client.get(url)).is_success:
        assert time.monotonic() < end, answer.text
        time.sleep(0.05)


def ask(api: httpx.Client, query: str) -> list[dict[str, Any]]:
    answer = api.get("/query", params={"query": query})
    assert answer.is_success, f"{query}: {answer.text}"
    found: list[dict[str, Any]] = answer.json()["data"]["result"]
    return found


@needs_prometheus
def test_prometheus_reaches_every_target_and_can_answer_every_query(api: httpx.Client) -> None:
    count = sum(map(len, targets().values()))
    end = time.monotonic() + 30
    while not ask(api, f"sum(up) == {count} and min(count_over_time(up[1m])) > 2"):
        assert time.monotonic() < end, api.get("/targets").text
        time.sleep(0.1)
    # The engine's label is the service's name in both jobs, and vLLM's own one is kept aside.
    labels = {(s["metric"]["engine"], s["metric"]["exported_engine"]) for s in ask(api, "vllm:num_requests_running")}
    names = {target.split(":")[0] for target in targets()["vllm"]}
    assert labels == {(name, "0") for name in names}
    assert {series["metric"]["engine"] for series in ask(api, "leafcutter_engine_info")} == names
    empty = {(title, query) for title, query in queries() if not ask(api, query)}
    assert not empty


@needs_promtool
def test_promtool_accepts_config_and_alerts() -> None:
    found = subprocess.run(["promtool", "check", "config", str(CONFIG)], capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stdout + found.stderr


@needs_promtool
@pytest.mark.parametrize(
    ("series", "fired"),
    [
        ({'up{job="gateway"}': DOWN}, {"GatewayDown": [{"job": "gateway"}]}),
        (
            {'leafcutter_engine_healthy{engine="engine-0"}': UP, 'leafcutter_engine_healthy{engine="engine-1"}': DOWN},
            {"EngineOut": [{"engine": "engine-1"}]},
        ),
        (
            {'leafcutter_engine_healthy{engine="engine-0"}': DOWN},
            {"EngineOut": [{"engine": "engine-0"}], "NoEngine": [{}]},
        ),
        (
            {'up{job="vllm",engine="engine-0"}': UP, 'up{job="eviction",engine="engine-0"}': DOWN},
            {"EvictionStateMissing": [{"job": "eviction", "engine": "engine-0"}]},
        ),
        ({'up{job="vllm",engine="engine-0"}': DOWN, 'up{job="eviction",engine="engine-0"}': DOWN}, {}),
        (
            {
                'leafcutter_requests_total{ending="ok"}': "0+90x20",
                'leafcutter_requests_total{ending="engine_lost"}': "0+10x20",
            },
            {"RequestsLost": [{}]},
        ),
        (
            {
                'leafcutter_requests_total{ending="ok"}': "0+50x20",
                'leafcutter_requests_total{ending="cancelled"}': "0+50x20",
            },
            {},
        ),
        (
            {
                'leafcutter_prediction_drift{engine="engine-0"}': UP,
                'leafcutter_prediction_drift{engine="engine-1"}': DOWN,
            },
            {"PredictionDrift": [{"engine": "engine-0"}]},
        ),
        (
            {
                'leafcutter_policy_faults_total{policy="lbgr"}': "0+1x20",
                'leafcutter_policy_faults_total{policy="lmetric"}': "3x20",
            },
            {"PolicyFaults": [{"policy": "lbgr"}]},
        ),
    ],
    ids=[
        "gateway down",
        "one engine out",
        "no engine",
        "plugin silent",
        "engine down",
        "lost",
        "given up",
        "drift",
        "faults",
    ],
)
def test_alerts_fire_when_they_should(
    tmp_path: Path, series: dict[str, str], fired: dict[str, list[dict[str, str]]]
) -> None:
    rules = DEPLOY / "prometheus/alerts.yml"
    alerts = {rule["alert"]: rule["annotations"] for rule in yaml.safe_load(rules.read_text())["groups"][0]["rules"]}
    checks = []
    for name, words in alerts.items():
        expected = [
            {"exp_labels": labels, "exp_annotations": {"summary": filled(words["summary"], labels)}}
            for labels in fired.get(name, [])
        ]
        checks.append({"eval_time": "15m", "alertname": name, "exp_alerts": expected})
    inputs = [{"series": name, "values": values} for name, values in series.items()]
    test = {"interval": "1m", "input_series": inputs, "alert_rule_test": checks}
    file = tmp_path / "unit.yml"
    file.write_text(yaml.safe_dump({"rule_files": [str(rules)], "tests": [test]}))
    found = subprocess.run(["promtool", "test", "rules", str(file)], capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stdout + found.stderr


def filled(summary: str, labels: dict[str, str]) -> str:
    """The annotation as Prometheus writes it, for the values these tests give."""
    text = summary.replace("{{ $labels.engine }}", labels.get("engine", ""))
    text = text.replace("{{ $labels.policy }}", labels.get("policy", ""))
    return text.replace("{{ $value | humanizePercentage }}", "10%")
