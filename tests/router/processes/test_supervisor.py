"""`leafcutter serve --processes 2` as it is run, with what can happen to each of its processes."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from router.cli.main import serve as serve_real
from router.config import Config, configure, configure_up
from router.engines.up import run as run_up
from router.processes.supervisor import process_count
from tests.router.engines.test_launch import launch as launch_engine
from tests.support.fake_engine import FakeEngine, Script
from tests.support.gateway_server import BODIES, CHAT
from tests.support.process_gateway import Processes, all_gone, equals, gated, launch, processes, streams, until


async def test_everything_answers_as_with_one_process(tmp_path: Path) -> None:
    record, snapshot = tmp_path / "trace.jsonl", tmp_path / "learned.json"
    flags = ["--policy", "lbgr", "--shadow", "lmetric", "--api-key", "secret", "--lbgr-cold-samples", "0"]
    flags += ["--record", str(record), "--snapshot", str(snapshot)]
    async with processes(Script(), Script(), tmp_path=tmp_path, flags=flags, key="secret") as gateway:
        assert (await gateway.get("/readiness"))["healthy_workers"] == 2
        answers = await asyncio.gather(*(gateway.post(stream=bool(n % 2)) for n in range(20)))
        assert [answer.status_code for answer in answers] == [200] * 20
        assert {"x-request-id", "x-leafcutter-engine", "x-leafcutter-policy", "x-leafcutter-predicted-ms"} <= set(
            answers[0].headers
        )
        assert "x-leafcutter-fallback" not in answers[0].headers
        assert answers[0].json()["choices"][0]["message"]["content"] == "The capital of France is Paris."

        for answer in answers[:4]:  # over whichever edge
            found = await gateway.get(f"/explain/{answer.headers['x-request-id']}")
            assert found["decisions"][0]["engine"] == answer.headers["x-leafcutter-engine"]
            assert found["decisions"][0]["outcome"]["ending"] == "ok"
        assert len((await gateway.get("/decisions?limit=50"))["decisions"]) == 20
        assert [worker["models"] for worker in await gateway.get("/workers")] == [["tiny"], ["tiny"]]
        dry = await gateway.client.post("/explain", json=BODIES[CHAT])
        assert dry.json()["policy"] == "lbgr"

        await check_errors(gateway)
        await check_metrics(gateway)

        put = await gateway.client.put("/policy", json={"policy": "least_loaded", "shadow": []})
        assert put.json()["split"] == {"least_loaded": 1.0}
        answers = await asyncio.gather(*(gateway.post() for _ in range(10)))
        assert {answer.headers["x-leafcutter-policy"] for answer in answers} == {"least_loaded"}

        private = list(gateway.folder.iterdir())
        assert [oct(path.stat().st_mode & 0o777) for path in private] == ["0o700"]
        assert await gateway.stop() == 0
        assert list(gateway.folder.iterdir()) == []
    assert len(record.read_text().splitlines()) == 30
    assert json.loads(snapshot.read_text())["learned"]["output_lengths"]


async def check_errors(gateway: Processes) -> None:
    async with httpx.AsyncClient(base_url=gateway.url, verify=False) as stranger:
        assert (await stranger.post(CHAT, json=BODIES[CHAT])).json()["error"]["code"] == "invalid_api_key"
        assert (await stranger.get("/workers")).status_code == 401
        assert [(await stranger.get(path)).status_code for path in ("/health", "/liveness", "/readiness")] == [200] * 3
    for answer, status, code in (
        (await gateway.post(model="gpt-9"), 404, "model_not_found"),
        (await gateway.client.get("/nothing"), 404, "unknown_url"),
        (await gateway.client.get("/explain/none"), 404, "request_not_found"),
        (await gateway.client.delete("/policy"), 405, "unknown_url"),
        (await gateway.client.put("/policy", content=b"{"), 400, "invalid_request"),
        (await gateway.client.post(CHAT, content=b"{"), 400, "invalid_request"),
    ):
        assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)


async def check_metrics(gateway: Processes) -> None:
    """After 20 good requests and two bad ones."""
    page = (await gateway.client.get("/metrics")).text
    assert "# HELP leafcutter_requests_total Client requests by how they ended." in page
    assert "Multiprocess metric" not in page
    samples = await gateway.samples()
    chat = "route=/v1/chat/completions"
    ended = {key.split("ending=")[1].split(" ")[0]: 0.0 for key in samples if "ending=" in key}
    for key, value in samples.items():
        if key.startswith("leafcutter_requests_total"):
            ended[key.split("ending=")[1].split(" ")[0]] += value
    assert ended == {"ok": 20.0, "rejected": 2.0}
    assert samples[f"leafcutter_ttft_seconds_count {chat}"] == 10.0
    assert samples["leafcutter_decision_seconds_count"] == 20.0
    assert samples[f"leafcutter_request_seconds_bucket le=+Inf {chat}"] == 22.0
    assert await gateway.total("leafcutter_prompt_tokens_total") == 800.0
    assert await gateway.total("leafcutter_shadow_decisions_total") == 20.0
    assert await gateway.in_flight() == 0.0
    assert samples["leafcutter_edges"] == 2.0
    assert samples["leafcutter_process_restarts_total process=edge"] == 0.0


async def test_sighup_replaces_the_edges_and_loses_no_request(tmp_path: Path) -> None:
    # The streams leave idle connections behind, which are closed after the grace.
    flags = ["--policy", "round_robin", "--shutdown-grace-period-secs", "3"]
    async with processes(Script(), gated(), tmp_path=tmp_path, flags=flags) as gateway:
        gate = gateway.engines[1].script.gate
        assert gate is not None
        before, done, asked = gateway.edges(), asyncio.Event(), 0

        async def keep_asking(client: httpx.AsyncClient) -> None:
            nonlocal asked
            while not done.is_set():
                if asked % 5:
                    answer = await client.post(CHAT, json=BODIES[CHAT])
                else:
                    answer = await client.get("/workers")
                assert answer.status_code == 200
                asked += 1

        async with streams(gateway.url, 8) as begun, AsyncExitStack() as stack:
            clients = [httpx.AsyncClient(base_url=gateway.url, timeout=30, verify=False) for _ in range(8)]
            for client in clients:
                await stack.enter_async_context(client)
            gateway.process.send_signal(signal.SIGHUP)  # while streams run
            await until(lambda: _said(gateway, "all edges are replaced", 1), 20)
            held = [stream for stream in begun if stream.headers["x-leafcutter-engine"] == "engine-1"]
            assert len(held) == 4
            assert not any(stream.rest.done() for stream in held)
            gate.set()
            between = gateway.edges()
            asking = [asyncio.create_task(keep_asking(client)) for client in clients]
            await asyncio.sleep(0.3)
            gateway.process.send_signal(signal.SIGHUP)  # while requests come on connections that are kept
            await until(lambda: _said(gateway, "all edges are replaced", 2), 20)
            await until(lambda: all_gone([*before, *between]), 20)
            done.set()
            await asyncio.gather(*asking)  # not one failed, not one was reset
            assert all([await stream.complete() for stream in begun])
        await until(lambda: equals(lambda: gateway.total("leafcutter_edges"), 2.0))
        assert not set(before) & set(gateway.edges())
        assert asked > 100
        assert (await gateway.samples())["leafcutter_process_restarts_total process=edge"] == 0.0
        assert await gateway.stop() == 0


async def _said(gateway: Processes, words: str, times: int) -> bool:
    return gateway.log.count(words) == times


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_to_stop_lets_running_streams_finish(number: signal.Signals, tmp_path: Path) -> None:
    script = gated()
    async with processes(script, tmp_path=tmp_path) as gateway, streams(gateway.url, 4) as begun:
        pids = gateway.pids()
        assert len(pids) == 4  # a router process, its standby and two edges
        gateway.process.send_signal(number)
        await until(lambda: _refuses(gateway.url))
        assert gateway.process.returncode is None
        assert script.gate is not None
        script.gate.set()
        assert all([await stream.complete() for stream in begun])
        assert await gateway.process.wait() == 0
        assert await all_gone(pids)
        assert list(gateway.folder.iterdir()) == []


async def _refuses(url: str) -> bool:
    try:
        async with httpx.AsyncClient(base_url=url, timeout=0.5, verify=False) as client:
            await client.get("/health")
        return False
    except httpx.TransportError:
        return True


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("count", [1, 2])
async def test_under_up_running_streams_finish_before_the_engines_stop(
    count: int, number: signal.Signals, tmp_path: Path, unused_tcp_port: int
) -> None:
    """`up` hears the signal too, and cancels the gateway at once."""
    started, script = launch_engine(tmp_path, unused_tcp_port), gated()
    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
    async with FakeEngine(script).serving() as engine:

        async def serve(config: Config) -> None:
            await serve_real(replace(config, engines=replace(config.engines, worker_urls=(engine.url,))))

        config = configure_up(processes=count, port=port, shutdown_pause_secs=0.5)
        running = asyncio.create_task(run_up(config, [started], serve))
        url = f"http://127.0.0.1:{port}"
        await until(lambda: _answers(url))
        async with streams(url, 4) as begun:
            os.kill(os.getpid(), number)
            await until(lambda: _refuses(url))
            assert not running.done()
            assert script.gate is not None
            script.gate.set()
            assert all([await stream.complete() for stream in begun])
        await running


async def _answers(url: str) -> bool:
    return not await _refuses(url)


async def test_what_cannot_start_says_why_and_leaves_nothing(tmp_path: Path) -> None:
    folder, log = tmp_path / "private", tmp_path / "gateway.log"
    folder.mkdir()
    flags = ("--processes", "2", "--worker-urls", "http://127.0.0.1:1")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        process = await launch(*flags, "--port", port, folder=folder, log=log)
        assert await process.wait() == 1
        assert f"cannot listen on 127.0.0.1:{port} (Address already in use): choose with --port" in log.read_text()
    process = await launch(*flags, "--snapshot", "/nowhere/learned.json", folder=folder, log=log)
    assert await process.wait() == 1
    assert "option 'snapshot' = '/nowhere/learned.json': expected a file in a folder" in log.read_text()
    assert "the process router did not start" in log.read_text()
    assert list(folder.iterdir()) == []


def test_auto_is_one_edge_for_each_core_up_to_eight() -> None:
    cores = len(os.sched_getaffinity(0))
    assert process_count(configure(processes="auto")) == min(8, cores)
    assert [process_count(configure(processes=value)) for value in (1, "1", 64)] == [1, 1, 64]
