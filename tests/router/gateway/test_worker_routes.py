"""Engines are added, drained and removed over HTTP while requests run."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx
import pytest

from tests.support.fake_engine import FakeEngine, Script
from tests.support.gateway_server import BODIES, CHAT, KINDS, Served, error_event, error_of, events, served, until


async def change(gateway: Served, name: str, state: str) -> httpx.Response:
    return await gateway.client.put(f"/workers/{name}", json={"state": state})


async def states(gateway: Served) -> dict[str, str]:
    return {each["engine"]: each["state"] for each in (await gateway.client.get("/workers")).json()}


def well(gateway: Served) -> None:
    for engine in gateway.router.status().engines:
        gateway.router.set_health(engine, True)


async def test_an_engine_is_added_used_and_removed() -> None:
    async with served() as gateway, FakeEngine().serving() as fresh:
        added = await gateway.client.post("/workers", json={"url": fresh.url + "/"})
        assert added.status_code == 201
        assert added.json() == {"worker": "engine-1", "url": fresh.url, "state": "active", "engines": ["engine-1"]}
        well(gateway)
        answers = [await gateway.post() for _ in range(4)]
        assert {each.headers["x-leafcutter-engine"] for each in answers} == {"engine-0", "engine-1"}
        page = (await gateway.client.get("/metrics")).text
        assert 'engine="engine-1"' in page
        request_id = next(e for e in answers if e.headers["x-leafcutter-engine"] == "engine-1").headers["x-request-id"]

        assert (await gateway.client.delete("/workers/engine-1")).status_code == 204
        assert await states(gateway) == {"engine-0": "active"}
        assert "engine-1" not in (await gateway.client.get("/metrics")).text
        assert gateway.value("leafcutter_requests_total", engine="engine-1") == 0, "nothing of it is kept either"
        assert gateway.value("leafcutter_requests_total", engine="engine-0") > 0
        explained = (await gateway.client.get(f"/explain/{request_id}")).json()
        assert explained["decisions"][0]["engine"] == "engine-1"
        assert (await gateway.post()).headers["x-leafcutter-engine"] == "engine-0"


@pytest.mark.parametrize(("route", "stream"), KINDS)
async def test_an_engine_that_is_removed_ends_what_it_has(route: str, stream: bool) -> None:
    gate = asyncio.Event()
    async with served(Script(gate=gate), Script(gate=gate)) as gateway:
        running = [asyncio.create_task(gateway.post(route, stream=stream)) for _ in range(4)]
        await until(lambda: sum(engine.running for engine in gateway.engines) == 4)
        answer = await gateway.client.delete("/workers/engine-1")
        assert (answer.status_code, answer.json()["state"]) == (202, "removing")
        assert await states(gateway) == {"engine-0": "active", "engine-1": "removing"}
        assert gateway.value("leafcutter_engine_draining", engine="engine-1") == 1
        late = asyncio.create_task(gateway.post(route, stream=stream))
        await until(lambda: gateway.engines[0].running == 3)
        gate.set()
        assert {each.status_code for each in await asyncio.gather(*running, late)} == {200}
        assert await states(gateway) == {"engine-0": "active"}
        assert gateway.router.in_flight == 0
        assert "engine-1" not in (await gateway.client.get("/metrics")).text, "not even what its last request counted"


async def test_a_forced_removal_cuts_off_what_has_begun_and_moves_what_has_not() -> None:
    gate = asyncio.Event()
    async with served(Script(gate=gate), Script(gate=gate)) as gateway:
        assert (await change(gateway, "engine-0", "draining")).json()["state"] == "draining"
        async with gateway.client.stream("POST", CHAT, json={**BODIES[CHAT], "stream": True}) as begun:
            whole = asyncio.create_task(gateway.post())
            await until(lambda: gateway.engines[1].running == 2)
            await change(gateway, "engine-0", "active")
            assert (await gateway.client.delete("/workers/engine-1?force=true")).status_code == 204
            await until(lambda: gateway.engines[0].running == 1 and gateway.engines[1].running == 0)
            gate.set()
            assert (await whole).headers["x-leafcutter-engine"] == "engine-0"
            assert error_event(await begun.aread())["code"] == "engine_lost"
        assert gateway.value("leafcutter_retries_total", reason="moved") == 1
        assert gateway.router.in_flight == 0


async def test_while_the_last_engine_drains_nobody_is_served() -> None:
    async with served() as gateway:
        await change(gateway, "engine-0", "draining")
        assert (await gateway.post()).status_code == 503
        ready = await gateway.client.get("/readiness")
        assert (ready.status_code, ready.json()["healthy_workers"]) == (503, 0)
        await change(gateway, "engine-0", "active")
        assert (await gateway.post()).status_code == 200
        assert (await gateway.client.get("/readiness")).status_code == 200


BAD: list[tuple[str, str, Any, int, str | None]] = [
    ("POST", "/workers", {"url": "ftp://h"}, 400, "url"),
    ("POST", "/workers", {"url": 3}, 400, "url"),
    ("POST", "/workers", {"url": "http://h\ud800"}, 400, "url"),
    ("POST", "/workers", {}, 400, "url"),
    ("POST", "/workers", [], 400, "url"),
    ("POST", "/workers", {"url": "http://h", "rank": 1}, 400, "rank"),
    ("POST", "/workers", {"url": "http://" + "h" * 70_000}, 413, None),
    ("PUT", "/workers/engine-0", {"state": "gone"}, 400, "state"),
    ("PUT", "/workers/engine-0", {"state": "removing"}, 400, "state"),
    ("PUT", "/workers/engine-9", {"state": "active"}, 404, "worker"),
    ("PUT", "/workers/" + "9" * 3000, {"state": "active"}, 404, "worker"),
    ("DELETE", "/workers/engine-9", None, 404, "worker"),
    ("DELETE", "/workers/engine-0?force=yes", None, 400, "force"),
    ("PATCH", "/workers/engine-0", {}, 405, None),
]


@pytest.mark.parametrize(("method", "path", "body", "status", "param"), BAD)
async def test_what_cannot_be_is_refused_and_changes_nothing(
    method: str, path: str, body: Any, status: int, param: str | None
) -> None:
    async with served() as gateway:
        answer = await gateway.client.request(method, path, content=json.dumps(body))
        assert answer.status_code == status
        assert answer.json()["error"]["param"] == param
        assert await states(gateway) == {"engine-0": "active"}


async def test_a_body_that_is_no_json_is_refused_and_a_bad_url_is_named() -> None:
    async with served() as gateway:
        assert (await gateway.client.post("/workers", content=b"[" * 9000)).status_code == 400
        message = (await gateway.client.post("/workers", json={"url": "h:8000"})).json()["error"]["message"]
        assert message.startswith("`url` = 'h:8000' is not a base URL such as http://")


async def test_an_engine_that_is_there_already_is_a_conflict() -> None:
    async with served() as gateway:
        url = gateway.engines[0].url.replace("http", "HTTP") + "/"
        answer = await gateway.client.post("/workers", json={"url": url})
        assert (answer.status_code, answer.json()["error"]["code"]) == (409, "worker_conflict")


async def test_each_rank_gets_its_header_and_no_client_chooses_one() -> None:
    header = {"x-data-parallel-rank": "7"}
    async with served(Script(ranks=(0, 1)), Script(), watched=True) as gateway:
        answers = [
            await gateway.client.post(CHAT, json={"model": "tiny", "messages": [], "stream": True}, headers=header)
            for _ in range(6)
        ]
        assert all(events(each.content)[-1] == "[DONE]" for each in answers)
        ranks, alone = [[each.headers for each in engine.requests] for engine in gateway.engines]
        assert {each["x-data-parallel-rank"] for each in ranks} == {"0", "1"}
        assert alone
        assert not any("x-data-parallel-rank" in each for each in alone)
        by_id = {each["x-request-id"]: each.get("x-data-parallel-rank") for each in (*ranks, *alone)}
        for each in answers:
            rank = by_id[each.headers["x-request-id"]]
            engine = "engine-1" if rank is None else f"engine-0-dp{rank}"
            assert each.headers["x-leafcutter-engine"] == engine
        answer = await gateway.client.delete("/workers/engine-0-dp1")
        assert (answer.status_code, error_of(answer)["code"]) == (409, "worker_conflict")
        assert (await gateway.client.delete("/workers/engine-0")).status_code == 204
        assert await states(gateway) == {"engine-1": "active"}
