"""`leafcutter serve --processes 2` as it is run, with what can happen to each of its processes."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest

from router.config import configure
from router.processes.supervisor import process_count
from tests.support.fake_engine import Script
from tests.support.gateway_server import BODIES, CHAT
from tests.support.process_gateway import Processes, alive, launch, processes

TOKENS = tuple(f" word{n}" for n in range(5))


def gated() -> Script:
    """An engine whose streams stand still after their first chunk, until its gate opens."""
    return Script(tokens=TOKENS, gate=asyncio.Event())


@dataclass
class Stream:
    """A client with a connection of its own, which has read the beginning of its answer."""

    response: httpx.Response
    rest: asyncio.Task[bytes]
    headers: httpx.Headers = field(init=False)

    def __post_init__(self) -> None:
        self.headers = self.response.headers

    async def complete(self) -> bool:
        """Whether the stream has come to its end."""
        try:
            return (await self.rest).endswith(b"data: [DONE]\n\n")
        except httpx.TransportError:
            return False


@asynccontextmanager
async def streams(gateway: Processes, count: int) -> AsyncIterator[list[Stream]]:
    async with AsyncExitStack() as stack:

        async def begin() -> Stream:
            client = await stack.enter_async_context(httpx.AsyncClient(base_url=gateway.url, timeout=30))
            body = {**BODIES[CHAT], "stream": True}
            response = await stack.enter_async_context(client.stream("POST", CHAT, json=body))
            assert response.status_code == 200
            return Stream(response, asyncio.create_task(response.aread()))

        yield list(await asyncio.gather(*(begin() for _ in range(count))))


async def until(condition: object, seconds: float = 10.0) -> None:
    """Wait until an asynchronous condition holds."""
    async with asyncio.timeout(seconds):
        while not await condition():  # type: ignore[operator]
            await asyncio.sleep(0.02)


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
    async with httpx.AsyncClient(base_url=gateway.url) as stranger:
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


async def test_an_edge_that_is_killed_takes_only_its_own_streams_with_it(tmp_path: Path) -> None:
    scripts = gated(), gated()
    async with processes(*scripts, tmp_path=tmp_path, flags=["--policy", "least_loaded"]) as gateway:
        async with streams(gateway, 40) as begun:
            samples = await gateway.samples()
            # Both edges see the whole load, or it would not be level to the last request.
            assert [samples[f"leafcutter_in_flight engine=engine-{n}"] for n in (0, 1)] == [20.0, 20.0]
            killed = gateway.edges()[0]
            os.kill(killed, signal.SIGKILL)
            await until(lambda: _fewer(gateway, 40.0))
            lost = [stream for stream in begun if stream.rest.done()]
            left = await gateway.in_flight()
            assert 0 < len(lost) < 40
            assert left == 40 - len(lost)
            for script in scripts:
                assert script.gate is not None
                script.gate.set()
            assert [await stream.complete() for stream in begun].count(True) == left
            await until(lambda: _equals(gateway.in_flight, 0.0))
        await until(lambda: _equals(lambda: gateway.total("leafcutter_edges"), 2.0))
        assert killed not in gateway.edges()
        assert (await gateway.samples())["leafcutter_process_restarts_total process=edge"] == 1.0
        assert (await gateway.post()).status_code == 200
        assert f"(process {killed}) has ended with status -9: starting another" in gateway.log
        ended = await gateway.total("leafcutter_requests_total")
        assert ended == left + 1  # what the dead edge had counted would still count
        assert await gateway.stop() == 0


async def _equals(read: object, value: float) -> bool:
    return bool(await read() == value)  # type: ignore[operator]


async def _fewer(gateway: Processes, value: float) -> bool:
    return await gateway.in_flight() < value


async def test_a_router_process_that_is_killed_is_replaced_and_no_request_is_lost(tmp_path: Path) -> None:
    scripts = gated(), gated()
    gates = [script.gate for script in scripts if script.gate is not None]
    flags = ["--policy", "lbgr", "--lbgr-cold-samples", "4", "--snapshot", str(tmp_path / "learned.json")]
    flags += ["--snapshot-interval-secs", "0.2"]
    async with processes(*scripts, tmp_path=tmp_path, flags=flags) as gateway:
        for gate in gates:
            gate.set()
        answers = [await gateway.post() for _ in range(20)]
        assert answers[-1].headers["x-leafcutter-reason"] == "lowest_cost"
        assert (await gateway.client.put("/policy", json={"policy": "lbgr", "shadow": ["lmetric"]})).status_code == 200
        await asyncio.sleep(1.0)  # the snapshot and the policies are written, and the standby waits
        for gate in gates:
            gate.clear()
        async with streams(gateway, 12) as begun:
            killed = gateway.router
            os.kill(killed, signal.SIGKILL)
            killed_s = time.monotonic()
            assert await routed(gateway) == ("least_loaded", "router_away")
            away = await gateway.client.get("/workers")
            assert away.status_code == 200 or away.json()["error"]["code"] == "router_away"
            while (how := await routed(gateway))[1] == "router_away":
                await asyncio.sleep(0.005)
            back_s = time.monotonic() - killed_s
            assert back_s < 2.0
            assert how == (None, "lowest_cost")  # what was learned is there, or it would be cold
            await until(lambda: _equals(gateway.in_flight, 12.0))
            for gate in gates:
                gate.set()
            assert all([await stream.complete() for stream in begun])
            await until(lambda: _equals(gateway.in_flight, 0.0))
        assert (await gateway.get("/policy"))["shadow"] == ["lmetric"]
        samples = await gateway.samples()
        assert samples["leafcutter_fallbacks_total policy=lbgr reason=router_away"] >= 1.0
        assert samples["leafcutter_process_restarts_total process=router"] == 1.0
        assert killed not in gateway.pids("router")
        assert await gateway.stop() == 0
        print(f"a killed router process decides again after {back_s:.3f} s")


async def routed(gateway: Processes) -> tuple[str | None, str]:
    """How a request is routed now: the headers for the fallback and the reason. Its client then leaves."""
    async with gateway.client.stream("POST", CHAT, json={**BODIES[CHAT], "stream": True}) as answer:
        return answer.headers.get("x-leafcutter-fallback"), answer.headers["x-leafcutter-reason"]


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

        async with streams(gateway, 8) as begun, AsyncExitStack() as stack:
            clients = [httpx.AsyncClient(base_url=gateway.url, timeout=30) for _ in range(8)]
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
            await until(lambda: _gone([*before, *between]), 20)
            done.set()
            await asyncio.gather(*asking)  # not one failed, not one was reset
            assert all([await stream.complete() for stream in begun])
        await until(lambda: _equals(lambda: gateway.total("leafcutter_edges"), 2.0))
        assert not set(before) & set(gateway.edges())
        assert asked > 100
        assert (await gateway.samples())["leafcutter_process_restarts_total process=edge"] == 0.0
        assert await gateway.stop() == 0


async def _said(gateway: Processes, words: str, times: int) -> bool:
    return gateway.log.count(words) == times


async def _gone(pids: list[int]) -> bool:
    return not any(map(alive, pids))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_to_stop_lets_running_streams_finish(number: signal.Signals, tmp_path: Path) -> None:
    script = gated()
    async with processes(script, tmp_path=tmp_path) as gateway, streams(gateway, 4) as begun:
        pids = gateway.pids()
        assert len(pids) == 4  # a router process, its standby and two edges
        gateway.process.send_signal(number)
        await until(lambda: _refuses(gateway))
        assert gateway.process.returncode is None
        assert script.gate is not None
        script.gate.set()
        assert all([await stream.complete() for stream in begun])
        assert await gateway.process.wait() == 0
        assert await _gone(pids)
        assert list(gateway.folder.iterdir()) == []


async def _refuses(gateway: Processes) -> bool:
    try:
        async with httpx.AsyncClient(base_url=gateway.url, timeout=0.5) as client:
            await client.get("/health")
        return False
    except httpx.TransportError:
        return True


async def test_without_the_supervisor_no_process_stays(tmp_path: Path) -> None:
    async with processes(Script(), tmp_path=tmp_path) as gateway:
        pids = gateway.pids()
        assert len(pids) == 4
        gateway.process.kill()
        await gateway.process.wait()
        await until(lambda: _gone(pids), 5)
        assert list(gateway.folder.iterdir()) == []


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
