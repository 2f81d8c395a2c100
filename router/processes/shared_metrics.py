"""One page of metrics for all processes.

Each edge counts in files of its own below one folder (prometheus_client's multiprocess mode). The router process shows
their sums beside what it counts itself. Files of edges that have ended go on counting, so that no counter falls; from
time to time they are folded into one file, so that their number stays small however often edges are replaced.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry, mmap_dict
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

from router.gateway.metrics import Metrics

ENDED = "ended"
"""What stands in the place of the process id in the name of a file of processes that have ended."""
CountFile: Any = mmap_dict.MmapedDict  # these two have no types
Sums: Any = MultiProcessCollector
MOST_FILES = 64  # so many files may be there before those of ended processes are folded


class SharedMetrics(Collector):
    """The sums over the files of all edges in `folder`."""

    def __init__(self, folder: str) -> None:
        self._folder = Path(folder)
        self._sums = Sums(None, folder)
        described = CollectorRegistry()
        Metrics(described)
        self._families = {metric.name: metric for metric in described.collect()}

    def collect(self) -> Iterable[Metric]:
        forget_gauges(self._folder)
        if len(list(self._folder.glob("*.db"))) > MOST_FILES:
            fold(self._folder)
        found = {metric.name: metric for metric in self._sums.collect()}
        for name, family in self._families.items():
            metric = Metric(name, family.documentation, family.type)  # one that no edge has counted yet is shown empty
            metric.samples = found[name].samples if name in found else []
            yield metric


class EdgesCollector(Collector):
    """Counts the processes. edges: returns how many edges are connected. restarts: returns how often processes that had
    died were started again, by their kind."""

    def __init__(self, edges: Callable[[], int], restarts: Callable[[], Mapping[str, int]]) -> None:
        self._edges, self._restarts = edges, restarts

    def collect(self) -> Iterable[Metric]:
        yield GaugeMetricFamily("leafcutter_edges", "Processes that serve clients now.", self._edges())
        restarts = CounterMetricFamily(
            "leafcutter_process_restarts", "Processes that died and were started again.", labels=["process"]
        )
        for process, count in self._restarts().items():
            restarts.add_metric([process], count)
        yield restarts


def forget_gauges(folder: Path) -> None:
    """Remove the files of gauges, which tell what a process has at the moment, once it has ended."""
    for file in folder.glob("gauge_*.db"):
        if _ended(file):
            file.unlink(missing_ok=True)


def fold(folder: Path) -> None:
    """Add the files of ended processes to one file for each kind of metric, and remove them. Gauges are forgotten."""
    forget_gauges(folder)
    ended: dict[str, list[Path]] = {}
    for file in folder.glob("*.db"):
        if _ended(file):
            ended.setdefault(file.stem.rpartition("_")[0], []).append(file)
    for kind, files in ended.items():
        archive, fresh = folder / f"{kind}_{ENDED}.db", folder / f"{kind}_{ENDED}.part"
        sums: dict[str, float] = {}
        for file in (*files, archive):
            if file.exists():
                for key, value, _, _ in CountFile.read_all_values_from_file(str(file)):
                    sums[key] = sums.get(key, 0.0) + value
        fresh.unlink(missing_ok=True)
        written = CountFile(str(fresh))
        for key, value in sums.items():
            written.write_value(key, value, 0.0)
        written.close()
        fresh.replace(archive)
        for file in files:
            file.unlink()


def _ended(file: Path) -> bool:
    """Whether the process that counts in this file has ended."""
    process = file.stem.rpartition("_")[2]
    return process.isdigit() and not os.path.exists(f"/proc/{process}")
