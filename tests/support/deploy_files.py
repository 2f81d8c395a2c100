"""What `deploy/` holds, read the way Docker, Prometheus and Grafana read it."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
VARIABLE = re.compile(r"\$\{(?P<name>\w+):-(?P<default>[^}]*)\}")
METRIC = re.compile(r"\b(?:leafcutter_|vllm:)[\w:]+|[a-zA-Z_:][\w:]*(?=[{\[])")


def compose() -> dict[str, Any]:
    """The compose file with every `${NAME:-default}` at its default."""
    found: dict[str, Any] = yaml.safe_load(VARIABLE.sub(r"\g<default>", (DEPLOY / "docker-compose.yml").read_text()))
    return found


def engines() -> dict[str, dict[str, Any]]:
    """The engine services by name, in the order of the file."""
    return {name: service for name, service in compose()["services"].items() if name.startswith("engine-")}


def gateway() -> dict[str, Any]:
    found: dict[str, Any] = compose()["services"]["gateway"]
    return found


def words(command: str | list[str]) -> list[str]:
    """A compose command as the process gets it."""
    return shlex.split(command) if isinstance(command, str) else command


def stages() -> dict[str, list[tuple[str, str]]]:
    """The Dockerfile's stages by name, `""` for what stands before the first: their (instruction, rest) in order."""
    text = (ROOT / "Dockerfile").read_text()
    text = re.sub(r"^#.*\n", "", text, flags=re.MULTILINE).replace("\\\n", " ")
    found: dict[str, list[tuple[str, str]]] = {"": []}
    for line in filter(str.strip, text.splitlines()):
        instruction, rest = line.split(maxsplit=1)
        if instruction == "FROM":
            found[rest.split()[-1]] = []
        list(found.values())[-1].append((instruction, rest))
    return found


def image_env(stage: str) -> dict[str, str]:
    """The variables that the Dockerfile sets in a stage."""
    rests = [rest for instruction, rest in stages()[stage] if instruction == "ENV"]
    return dict(pair.split("=", 1) for rest in rests for pair in shlex.split(rest))


def prometheus() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((DEPLOY / "prometheus/prometheus.yml").read_text())
    return found


def targets() -> dict[str, list[str]]:
    """The addresses that Prometheus scrapes, by job."""
    return {
        config["job_name"]: [target for static in config["static_configs"] for target in static["targets"]]
        for config in prometheus()["scrape_configs"]
    }


def dashboard() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((DEPLOY / "grafana/dashboards/overview.json").read_text())
    return found


def panels() -> list[dict[str, Any]]:
    """The panels that show something: rows left out."""
    return [panel for panel in dashboard()["panels"] if panel["type"] != "row"]


def queries() -> Iterator[tuple[str, str]]:
    """(panel title, PromQL) of every query, with Grafana's own variables filled in."""
    for panel in panels():
        for target in panel["targets"]:
            yield panel["title"], target["expr"].replace("$__rate_interval", "1m").replace("$engine", ".+")


def metrics(query: str) -> set[str]:
    """The names of the metrics in a query."""
    return set(METRIC.findall(query))
