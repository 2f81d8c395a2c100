"""What follows when a process of a running gateway is killed outright."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from pathlib import Path

from tests.support.fake_engine import Script
from tests.support.gateway_server import BODIES, CHAT
from tests.support.process_gateway import Processes, all_gone, equals, gated, processes, streams, until


async def test_an_edge_that_is_killed_takes_only_its_own_streams_with_it(tmp_path: Path) -> None:
    scripts = gated(), gated()
    async with processes(*scripts, tmp_path=tmp_path, flags=["--policy", "least_loaded"]) as gateway:
        async with streams(gateway.url, 40) as begun:
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
            await until(lambda: equals(gateway.in_flight, 0.0))
        await until(lambda: equals(lambda: gateway.total("leafcutter_edges"), 2.0))
        assert killed not in gateway.edges()
        assert (await gateway.samples())["leafcutter_process_restarts_total process=edge"] == 1.0
        assert (await gateway.post()).status_code == 200
        assert f"(process {killed}) has ended with status -9: starting another" in gateway.log
        ended = await gateway.total("leafcutter_requests_total")
        assert ended == left + 1  # what the dead edge had counted would still count
        assert await gateway.stop() == 0


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
        async with streams(gateway.url, 12) as begun:
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
            await until(lambda: equals(gateway.in_flight, 12.0))
            for gate in gates:
                gate.set()
            assert all([await stream.complete() for stream in begun])
            await until(lambda: equals(gateway.in_flight, 0.0))
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


async def test_without_the_supervisor_no_process_stays(tmp_path: Path) -> None:
    async with processes(Script(), tmp_path=tmp_path) as gateway:

        async def all_there() -> bool:
            return len(gateway.pids()) == 4

        await until(all_there)  # the standby process comes last
        pids = gateway.pids()
        gateway.process.kill()
        await gateway.process.wait()
        await until(lambda: all_gone(pids), 5)
        assert list(gateway.folder.iterdir()) == []
