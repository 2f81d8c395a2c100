from __future__ import annotations

import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest

from router.config import Config, configure
from router.core.router import Router
from router.errors import ConfigError
from router.gateway.app import create_app
from router.sim.trace import TraceFile
from router.types import EngineId, EngineInfo
from tests.support.fake_engine import MODEL, Script
from tests.support.gateway_server import BODIES, CHAT, COMPLETIONS, listening, served

NAMES = [
    "requests_total",
    "request_seconds_bucket",
    "ttft_seconds_bucket",
    "decision_seconds_bucket",
    "in_flight",
    "engine_healthy",
    "prompt_tokens_total",
    "cached_tokens_total",
    "output_tokens_total",
    "prediction_error_seconds_bucket",
    "retries_total",
    "prefix_index_blocks",
    "decisions_total",
    "policy_share",
    "policy_faults_total",
    "policy_seconds_total",
    "shadow_decisions_total",
    "shadow_agreements_total",
    "shadow_regret_seconds_total",
    "prediction_error_ratio_bucket",
    "prediction_drift",
    "record_requests_total",
]


@pytest.mark.parametrize("path", ["/health", "/liveness"])
async def test_the_gateway_lives_without_engines(path: str) -> None:
    async with served() as gateway:
        gateway.router.set_health(EngineId("engine-0"), False)
        assert (await gateway.client.get(path)).status_code == 200


async def test_it_is_ready_with_one_healthy_engine() -> None:
    async with served(Script(), Script()) as gateway:
        gateway.router.set_health(EngineId("engine-0"), False)
        response = await gateway.client.get("/readiness")
        assert response.status_code == 200
        assert response.json() == {"status": "ready", "healthy_workers": 1, "total_workers": 2}
        gateway.router.set_health(EngineId("engine-1"), False)
        response = await gateway.client.get("/readiness")
        assert (response.status_code, response.json()["healthy_workers"]) == (503, 0)


async def test_models_of_healthy_engines_are_listed_once() -> None:
    async with served(Script(), Script(), Script()) as gateway:
        fleet = gateway.router
        fleet.set_info(EngineId("engine-1"), EngineInfo(models=(MODEL, "lora")))
        fleet.set_info(EngineId("engine-2"), EngineInfo(models=("away",)))
        fleet.set_health(EngineId("engine-2"), False)
        answer = (await gateway.client.get("/v1/models")).json()
        assert answer["object"] == "list"
        assert [model["id"] for model in answer["data"]] == [MODEL, "lora"]
        assert all(model["object"] == "model" and model["created"] > 0 for model in answer["data"])


async def test_workers_tell_what_is_known_of_each_engine() -> None:
    async with served(Script(), Script()) as gateway:
        info = EngineInfo((MODEL,), "rlt", 32, 256, "0.1.0", "0.32.0")
        gateway.router.set_info(EngineId("engine-0"), info)
        first, second = (await gateway.client.get("/workers")).json()
        assert first.items() >= {
            ("engine", "engine-0"),
            ("url", gateway.engines[0].url),
            ("healthy", True),
            ("order", "rlt"),
            ("block_size", 32),
            ("capacity_blocks", 256),
            ("plugin_version", "0.1.0"),
            ("vllm_version", "0.32.0"),
            ("in_flight", 0),
        }
        assert first["models"] == [MODEL]
        assert first.keys() >= gateway.router.describe(EngineId("engine-0")).keys()
        assert second["order"] is None


async def test_every_metric_is_exposed(tmp_path: Path) -> None:
    scripts, record = (Script(), Script(status=503)), str(tmp_path / "trace")
    async with served(*scripts, policy="lbgr", shadow=("lmetric",), record=record) as gateway:
        for route in (CHAT, COMPLETIONS):
            for _ in range(4):
                assert (await gateway.post(route, stream=True)).status_code == 200
        page = (await gateway.client.get("/metrics")).text
        lines = {line.split("{")[0].split(" ")[0] for line in page.splitlines() if not line.startswith("#")}
        assert {f"leafcutter_{name}" for name in NAMES} <= lines
        assert "127.0.0.1" not in page


async def test_traffic_is_recorded_if_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    async with served(record=str(path)) as gateway:
        for n in range(3):
            assert (await gateway.post(stream=n % 2 == 0, user="somebody", max_tokens=9)).status_code == 200
        assert (await gateway.post(n=2)).status_code == 200
        assert (await gateway.post(messages=3)).status_code == 400
    requests = list(TraceFile(str(path)).open(0))
    assert [(request.prompt_tokens, request.output_tokens) for request in requests] == [(40, 3)] * 3
    assert gateway.value("leafcutter_record_requests_total", result="written") == 3
    assert gateway.value("leafcutter_record_requests_total", result="left_out") == 2
    assert "somebody" not in path.read_text()
    assert "capital" not in path.read_text()


async def test_nothing_is_recorded_if_not() -> None:
    async with served() as gateway:
        assert "leafcutter_record" not in (await gateway.client.get("/metrics")).text


def test_a_file_that_cannot_be_written_stops_the_start(tmp_path: Path) -> None:
    config = configure(record=str(tmp_path / "no" / "trace"))
    with pytest.raises(ConfigError, match="record"):
        create_app(config, Router(config.routing, config.policies, rng=random.Random(1)), {})


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/nowhere", 404), ("POST", "/v1/nowhere", 404), ("GET", CHAT, 404), ("POST", "/health", 405)],
)
async def test_unknown_urls_get_an_openai_error_and_no_label(method: str, path: str, status: int) -> None:
    async with served() as gateway:
        response = await gateway.client.request(method, path)
        assert response.status_code == status
        error = response.json()["error"]
        assert (error["type"], error["code"]) == ("invalid_request_error", "unknown_url")
        assert "nowhere" not in (await gateway.client.get("/metrics")).text


@pytest.mark.parametrize("given", [None, "Bearer wrong", "key", "Bearer key2"])
async def test_a_key_is_asked_for(given: str | None) -> None:
    headers = {"authorization": given} if given else {}
    async with served(api_key="key") as gateway:
        for response in (
            await gateway.client.post(CHAT, json=BODIES[CHAT], headers=headers),
            await gateway.client.get("/v1/models", headers=headers),
            await gateway.client.get("/workers", headers=headers),
            await gateway.client.get("/explain/a", headers=headers),
            await gateway.client.post("/explain", json=BODIES[CHAT], headers=headers),
            await gateway.client.get("/decisions", headers=headers),
            await gateway.client.get("/policy", headers=headers),
            await gateway.client.put("/policy", json={"policy": "random"}, headers=headers),
            await gateway.client.get("/", headers=headers),
            await gateway.client.get("/nowhere", headers=headers),
            await gateway.client.get("/added-later", headers=headers),
            await gateway.client.get("/health/", headers=headers),
            await gateway.client.get("/metrics/../workers", headers=headers),
            await gateway.client.get("//metrics", headers=headers),
            await gateway.client.post("/tokenize", json={}, headers=headers),
        ):
            assert (response.status_code, response.json()["error"]["code"]) == (401, "invalid_api_key")
        assert not gateway.engines[0].requests
        assert gateway.router.status().policy == "least_loaded"


async def test_the_right_key_opens_and_health_needs_none() -> None:
    async with served(api_key="key") as gateway:
        headers = {"authorization": "Bearer key"}
        assert (await gateway.client.post(CHAT, json=BODIES[CHAT], headers=headers)).status_code == 200
        for path in ("/v1/models", "/workers", "/decisions", "/policy"):
            assert (await gateway.client.get(path, headers=headers)).status_code == 200
        for path in ("/health", "/liveness", "/readiness", "/metrics"):
            assert (await gateway.client.get(path)).status_code == 200


@pytest.mark.parametrize("given", ["bearer key", "BEARER key", "Bearer  key"])
async def test_the_name_of_the_scheme_may_be_in_any_case(given: str) -> None:
    async with served(api_key="key") as gateway:
        assert (await gateway.client.get("/v1/models", headers={"authorization": given})).status_code == 200


async def test_discovery_runs_as_long_as_the_application() -> None:
    class Watch:
        state = "new"

        @asynccontextmanager
        async def running(self) -> AsyncIterator[None]:
            self.state = "running"
            yield
            self.state = "over"

    watch = Watch()
    config = Config()
    app = create_app(
        config, Router(config.routing, config.policies, rng=random.Random(1)), {}, discovery=lambda _: watch
    )
    async with listening(app) as url, httpx.AsyncClient(verify=False) as client:
        assert (await client.get(f"{url}/health")).status_code == 200
        assert watch.state == "running"
    assert watch.state == "over"
