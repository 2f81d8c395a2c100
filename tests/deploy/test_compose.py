"""The compose file fits the parsers that read it, and the other files that name the same hosts and ports."""

from __future__ import annotations

import re
import shutil
import subprocess
import warnings
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

import pytest

from engine_patches import __version__, settings
from router.cli import main as cli
from router.config import Config
from router.engines import probe
from router.gateway.tenants import check_doors
from tests.support.deploy_files import (
    DEPLOY,
    ROOT,
    VARIABLE,
    compose,
    engines,
    gateway,
    image_env,
    stages,
    targets,
    words,
)


@pytest.fixture(scope="module")
def parse() -> Callable[[list[str]], Any]:
    """Reads arguments as the engine image does, whose entry point is `vllm serve`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of vLLM's imports
        module = pytest.importorskip("vllm.entrypoints.cli.serve", reason="vLLM is not installed")
        from vllm.utils.argparse_utils import FlexibleArgumentParser
    parser = FlexibleArgumentParser(prog="vllm")
    (serve,) = module.cmd_init()
    serve.subparser_init(parser.add_subparsers())

    def run(arguments: list[str]) -> Any:
        found = parser.parse_args(["serve", *arguments])
        serve.validate(found)
        return found

    return run


@pytest.fixture
def config() -> Config:
    """The gateway's options as its container would read them."""
    env = image_env("gateway") | gateway()["environment"]
    return cli.load(Config, cli.parser().parse_args(["serve", *words(gateway()["command"])]), env)


def seconds(duration: str) -> int:
    """`40s` or `30m`."""
    return int(duration[:-1]) * {"s": 1, "m": 60}[duration[-1]]


def test_vllm_accepts_the_command_of_every_engine(parse: Callable[[list[str]], Any]) -> None:
    assert len(engines()) == 2
    for service in engines().values():
        arguments = parse(words(service["command"]))
        assert arguments.model_tag == "Qwen/Qwen2.5-1.5B-Instruct"
        assert arguments.enable_prompt_tokens_details


def test_vllm_refuses_an_option_it_does_not_know(parse: Callable[[list[str]], Any]) -> None:
    command = words(engines()["engine-0"]["command"])
    with pytest.raises(SystemExit):
        parse([*command, "--no-such-option"])


def test_the_gateway_knows_every_engine_by_its_service_name(config: Config) -> None:
    ports = {name: flag(words(service["command"]), "--port") for name, service in engines().items()}
    assert list(config.engines.worker_urls) == [f"http://{name}:{port}" for name, port in ports.items()]
    assert list(ports) == [f"engine-{index}" for index in range(len(ports))]  # the gateway's own names for them
    assert config.server.host == "0.0.0.0"
    check_doors(config.server)


def flag(command: list[str], name: str) -> str:
    return command[command.index(name) + 1]


def test_the_plugin_takes_the_settings_of_every_engine(config: Config) -> None:
    known = {option.name for option in settings.OPTIONS}
    for url, service in zip(config.engines.worker_urls, engines().values(), strict=True):
        env = image_env("engine") | service["environment"]
        assert {name for name in env if name.startswith("LEAFCUTTER_")} <= known
        found = settings.read_settings(env)
        assert (found.order, found.state_host) == ("rlt_gix", "0.0.0.0")
        state = probe.state_url(url, config.engines.state_port_offset)
        assert state
        assert found.state_port == urlsplit(state).port


def test_prometheus_scrapes_what_the_gateway_reads(config: Config) -> None:
    states = [probe.state_url(url, config.engines.state_port_offset) for url in config.engines.worker_urls]
    assert targets() == {
        "gateway": [f"gateway:{config.server.port}"],
        "vllm": [urlsplit(url).netloc for url in config.engines.worker_urls],
        "eviction": [urlsplit(state or "").netloc for state in states],
    }


def test_what_is_published_is_listened_on(config: Config) -> None:
    inside = {
        name: [int(port.rsplit(":", 1)[1]) for port in service["ports"]]
        for name, service in compose()["services"].items()
        if "ports" in service
    }
    assert inside == {"gateway": [config.server.port], "prometheus": [9090], "grafana": [3000]}
    assert f":{config.server.port}/readiness" in gateway()["healthcheck"]["test"][-1]
    for service in engines().values():
        assert f":{flag(words(service['command']), '--port')}/health" in service["healthcheck"]["test"][-1]


def test_every_engine_has_gpus_of_its_own() -> None:
    claims = [
        device["device_ids"]
        for service in engines().values()
        for device in service["deploy"]["resources"]["reservations"]["devices"]
    ]
    assert len(claims) == len(engines())
    assert len({gpu for ids in claims for gpu in ids}) == sum(map(len, claims))


def test_running_requests_have_their_time_to_finish(config: Config) -> None:
    assert seconds(gateway()["stop_grace_period"]) > config.server.shutdown_grace_period_secs


def test_what_is_mounted_exists() -> None:
    for service in compose()["services"].values():
        for source, *_ in (volume.split(":") for volume in service.get("volumes", [])):
            assert (DEPLOY / source).is_dir() if source.startswith(".") else source in compose()["volumes"]


def test_images_are_built_from_the_dockerfile_and_carry_the_version() -> None:
    for service in (gateway(), *engines().values()):
        target = service["build"]["target"]
        assert (DEPLOY / service["build"]["context"]).resolve() == ROOT
        assert target in stages()
        assert service["image"] == f"leafcutter-{target}:{__version__}"
    others = [service["image"] for service in compose()["services"].values() if "build" not in service]
    assert all(re.search(r":v?\d+\.\d+\.\d+$", image) for image in others), others


def test_the_readme_lists_every_variable_with_its_default() -> None:
    rows = re.findall(r"^\| `(\w+)` \| (?:`([^`]*)`)? *\|", (DEPLOY / "README.md").read_text(), re.MULTILINE)
    passed_on = {name: "" for name, value in gateway()["environment"].items() if value is None}
    assert dict(rows) == dict(VARIABLE.findall((DEPLOY / "docker-compose.yml").read_text())) | passed_on


@pytest.mark.skipif(shutil.which("docker-compose") is None, reason="docker-compose is not installed")
def test_docker_compose_reads_the_file() -> None:
    command = ["docker-compose", "--file", str(DEPLOY / "docker-compose.yml"), "config", "--quiet"]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr
