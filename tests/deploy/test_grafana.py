"""The dashboard asks for metrics that the code declares, and Grafana's files agree with Prometheus' and Docker's."""

from __future__ import annotations

import itertools
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from prometheus_client import CollectorRegistry, Metric

from engine_patches.exporter import Exporter
from engine_patches.orders import ORDERS
from router.gateway.metrics import Metrics, RouterCollector
from tests.support.deploy_files import DEPLOY, compose, dashboard, metrics, panels, prometheus, queries
from tests.support.exchanges import status_of

SUFFIXES = {"counter": ["_total"], "gauge": [""], "histogram": ["_bucket", "_count"]}


class Pool(SimpleNamespace):
    """As much of the adapter's pool as the exporter reads."""


def declared() -> set[str]:
    """The samples that the gateway and the plugin may show."""
    registry = CollectorRegistry()
    Metrics(registry)
    pool = Pool(order=ORDERS["rlt"](8), hash_block_size=16, num_gpu_blocks=8)
    exporter = Exporter(0, "", "0.32.0", serve=lambda *_: None)
    exporter.show(pool)
    shown = (exporter, RouterCollector(status_of))
    families: list[Metric] = [*registry.collect(), *(family for each in shown for family in each.collect())]
    return {family.name + suffix for family in families for suffix in SUFFIXES[family.type]}


def test_every_query_names_metrics_of_ours_or_of_vllm() -> None:
    names = declared()
    for title, query in queries():
        found = metrics(query)
        assert found, f"{title}: no metric in {query}"
        assert {name for name in found if not name.startswith("vllm:")} <= names, title


def test_the_names_are_found_wherever_they_stand_in_a_query() -> None:
    query = 'sum by (le) (rate(vllm:a_total{engine="x"}[1m])) / on (engine) leafcutter_b + min(other{engine="y"})'
    assert metrics(query) == {"vllm:a_total", "leafcutter_b", "other"}


def test_every_panel_says_what_it_shows_in_which_unit() -> None:
    assert len(panels()) >= 12
    for panel in panels():
        assert panel["description"].endswith("."), panel["title"]
        assert panel["type"] != "timeseries" or panel["fieldConfig"]["defaults"]["unit"], panel["title"]
        assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        references = [target["refId"] for target in panel["targets"]]
        assert len(set(references)) == len(references)


def test_panels_lie_side_by_side() -> None:
    def cells(panel: dict[str, Any]) -> set[tuple[int, int]]:
        grid = panel["gridPos"]
        assert grid["x"] + grid["w"] <= 24
        columns, rows = range(grid["x"], grid["x"] + grid["w"]), range(grid["y"], grid["y"] + grid["h"])
        return set(itertools.product(columns, rows))

    placed = [(panel["id"], cells(panel)) for panel in dashboard()["panels"]]
    for (one, here), (other, there) in itertools.combinations(placed, 2):
        assert one != other
        assert not here & there, (one, other)


def test_grafana_finds_prometheus_and_the_dashboard() -> None:
    folder, service = DEPLOY / "grafana/provisioning", compose()["services"]["grafana"]
    (source,) = yaml.safe_load((folder / "datasources/prometheus.yml").read_text())["datasources"]
    assert source["url"] == "http://prometheus:9090"
    assert source["jsonData"]["timeInterval"] == prometheus()["global"]["scrape_interval"]
    assert dashboard()["templating"]["list"][0]["current"]["value"] == source["uid"]

    (provider,) = yaml.safe_load((folder / "dashboards/leafcutter.yml").read_text())["providers"]
    path = provider["options"]["path"]
    mounts = {target: source for source, target, *_ in (volume.split(":") for volume in service["volumes"])}
    home = service["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert home.rpartition("/")[0] == path
    assert (DEPLOY / mounts[path] / home.rpartition("/")[2]).is_file()


@pytest.mark.parametrize("name", ["prometheus.yml", "alerts.yml"])
def test_prometheus_finds_its_files_where_they_are_mounted(name: str) -> None:
    service = compose()["services"]["prometheus"]
    assert "./prometheus:/etc/prometheus:ro" in service["volumes"]
    assert "--config.file=/etc/prometheus/prometheus.yml" in service["command"]
    assert (DEPLOY / "prometheus" / name).is_file()
