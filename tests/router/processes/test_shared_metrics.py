"""One page of metrics over the files of several processes, of which some have ended."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from router.processes import shared_metrics
from router.processes.shared_metrics import EdgesCollector, SharedMetrics, fold

ROOT = Path(__file__).parents[3]

COUNT = """
import sys
from prometheus_client import CollectorRegistry
from router.errors import RetryReason
from router.gateway.metrics import Metrics
metrics = Metrics(CollectorRegistry())
metrics.waiting(1)
for _ in range(int(sys.argv[1])):
    metrics.retried(RetryReason.BUSY)
    metrics._request_s("/v1/completions").observe(0.07)
"""


def count(folder: Path, times: int) -> None:
    """A process that counts so often, and then ends."""
    env = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(folder), "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", COUNT, str(times)], env=env, check=True)


def sums(folder: Path) -> dict[str, float]:
    wanted = (
        "leafcutter_retries_total",
        "leafcutter_queue_length",
        "leafcutter_request_seconds_count",
        "leafcutter_request_seconds_bucket",
    )
    found = {}
    for metric in SharedMetrics(str(folder)).collect():
        for sample in metric.samples:
            if sample.name in wanted:
                found[sample.name + sample.labels.get("le", "")] = sample.value
    return found


def test_the_sums_stay_when_files_of_ended_processes_are_folded(tmp_path: Path) -> None:
    count(tmp_path, 3)
    count(tmp_path, 4)
    before = sums(tmp_path)
    assert before["leafcutter_retries_total"] == 7.0
    assert "leafcutter_queue_length" not in before  # who has ended has nobody waiting
    assert before["leafcutter_request_seconds_bucket0.05"] == 0.0
    assert before["leafcutter_request_seconds_bucket0.1"] == before["leafcutter_request_seconds_count"] == 7.0
    fold(tmp_path)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["counter_ended.db", "histogram_ended.db"]
    assert sums(tmp_path) == before
    count(tmp_path, 2)
    fold(tmp_path)
    fold(tmp_path)
    assert len(list(tmp_path.iterdir())) == 2
    assert sums(tmp_path)["leafcutter_retries_total"] == 9.0


def test_files_of_living_processes_are_not_folded_and_folding_begins_by_itself(tmp_path: Path) -> None:
    count(tmp_path, 1)
    for file in list(tmp_path.iterdir()):
        kind = file.stem.rpartition("_")[0]
        file.rename(tmp_path / f"{kind}_{os.getpid()}.db")
        for pid in range(10_000_000, 10_000_000 + shared_metrics.MOST_FILES):  # beyond any process id
            (tmp_path / f"{kind}_{pid}.db").write_bytes((tmp_path / f"{kind}_{os.getpid()}.db").read_bytes())
    assert sums(tmp_path)["leafcutter_retries_total"] == 1.0 + shared_metrics.MOST_FILES
    assert len(list(tmp_path.iterdir())) == 5
    assert sums(tmp_path)["leafcutter_queue_length"] == 1.0  # of the one that lives
    assert sums(tmp_path)["leafcutter_retries_total"] == 1.0 + shared_metrics.MOST_FILES


def test_every_metric_has_its_help_before_anyone_has_counted(tmp_path: Path) -> None:
    families = {metric.name: metric.documentation for metric in SharedMetrics(str(tmp_path)).collect()}
    assert families["leafcutter_requests"] == "Client requests by how they ended."
    assert len(families) == 20
    edges = {metric.name for metric in EdgesCollector(lambda: 1, lambda: {"edge": 2}).collect()}
    assert edges == {"leafcutter_edges", "leafcutter_process_restarts"}
