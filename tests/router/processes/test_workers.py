"""Engines come and go while several processes serve."""

from __future__ import annotations

import asyncio
import os
import signal
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from router.core.worker_url import address_of
from router.core.workers import Workers
from router.types import Ending, EngineId
from tests.support.decision_place import ADDRESSES, E0, E1, Place, done, make_router, request
from tests.support.fake_engine import FakeEngine, Script
from tests.support.gateway_server import until
from tests.support.process_gateway import Processes, gated, processes, streams
from tests.support.process_gateway import until as until_async


async def share(gateway: Processes) -> dict[str, str]:
    return {each["engine"]: each["state"] for each in await gateway.get("/workers")}


async def served_by(gateway: Processes, name: str) -> bool:
    return bool((await gateway.post()).headers.get("x-leafcutter-engine") == name)


@asynccontextmanager
async def load(gateway: Processes, clients: int = 4) -> AsyncIterator[Counter[int]]:
    """Requests, streamed and not, as long as the context. It gives the statuses; a stream that breaks has status 0."""
    counts, over = Counter[int](), asyncio.Event()

    async def ask(stream: bool) -> None:
        while not over.is_set():
            answer = await gateway.post(stream=stream)
            whole = answer.status_code != 200 or not stream or answer.content.endswith(b"[DONE]\n\n")
            counts[answer.status_code if whole else 0] += 1

    tasks = [asyncio.create_task(ask(bool(n % 2))) for n in range(clients)]
    try:
        yield counts
    finally:
        over.set()
        await asyncio.gather(*tasks)


async def test_engines_are_added_drained_and_removed_under_load_and_nothing_is_lost(tmp_path: Path) -> None:
    async with processes(Script(), Script(), tmp_path=tmp_path) as gateway, FakeEngine().serving() as fresh:
        async with load(gateway) as counts:
            added = await gateway.client.post("/workers", json={"url": fresh.url})
            assert (added.status_code, added.json()["worker"]) == (201, "engine-2")
            assert (await gateway.client.post("/workers", json={"url": fresh.url})).status_code == 409
            await until_async(lambda: served_by(gateway, "engine-2"))
            await gateway.client.put("/workers/engine-0", json={"state": "draining"})
            removed = await gateway.client.delete("/workers/engine-1")
            assert removed.status_code in (202, 204)

            async def alone() -> bool:
                return await share(gateway) == {"engine-0": "draining", "engine-2": "active"}

            await until_async(alone)
            before = len(gateway.engines[0].requests), len(gateway.engines[1].requests), sum(counts.values())
            await until(lambda: sum(counts.values()) > before[2] + 40)
            await until(lambda: gateway.engines[0].running == 0)
            assert (len(gateway.engines[0].requests), len(gateway.engines[1].requests)) <= (before[0] + 4, before[1])
        assert set(counts) == {200}
        samples = await gateway.samples()
        assert samples["leafcutter_engine_draining engine=engine-0"] == 1
        assert not [name for name in samples if "engine=engine-1" in name]
        assert [name for name in samples if "engine=engine-2" in name]
        assert await gateway.in_flight() == 0


async def test_the_next_router_process_knows_the_engines(tmp_path: Path) -> None:
    async with processes(Script(), gated(), tmp_path=tmp_path) as gateway, FakeEngine().serving() as fresh:
        await gateway.client.put("/workers/engine-0", json={"state": "draining"})
        async with streams(gateway.url, 2) as running:
            assert {each.headers["x-leafcutter-engine"] for each in running} == {"engine-1"}
            await gateway.client.post("/workers", json={"url": fresh.url})
            assert (await gateway.client.delete("/workers/engine-1")).status_code == 202
            await until_async(lambda: served_by(gateway, "engine-2"))
            os.kill(gateway.router, signal.SIGKILL)
            await asyncio.sleep(0.3)
            known = {"engine-0": "draining", "engine-1": "removing", "engine-2": "active"}
            assert await share(gateway) == known
            assert gateway.engines[1].script.gate is not None
            gateway.engines[1].script.gate.set()
            assert all([await each.complete() for each in running])

            async def gone() -> bool:
                return "engine-1" not in await share(gateway)

            await until_async(gone)
            await until_async(lambda: served_by(gateway, "engine-2"))


async def test_the_file_of_options_is_followed(tmp_path: Path) -> None:
    async with FakeEngine().serving() as first, FakeEngine().serving() as second:
        file = tmp_path / "options.yaml"
        file.write_text(f"worker_urls: [{first.url}]\n")
        async with processes(tmp_path=tmp_path, flags=["--config", str(file)], listed=False) as gateway:
            assert await share(gateway) == {"engine-0": "active"}
            async with load(gateway) as counts:
                file.write_text(f"worker_urls: [{second.url}]\npolicy: lmetric\n")
                gateway.process.send_signal(signal.SIGHUP)

                async def replaced() -> bool:
                    return await share(gateway) == {"engine-1": "active"} and "all edges are replaced" in gateway.log

                await until_async(replaced)
                file.write_text("worker_urls: [nowhere]\n")
                await until(lambda: "option 'worker_urls' = 'nowhere': expected a base URL" in gateway.log)
                assert await share(gateway) == {"engine-1": "active"}
            assert set(counts) <= {200, 503}  # 503: until the new one had passed its first check
            assert "these options take effect with a restart: policy" in gateway.log
            assert await served_by(gateway, "engine-1")


# --- the protocol -------------------------------------------------------------------------------------------------


async def place_with_workers(place: Place) -> Workers:
    """The place again, with workers behind it."""
    await place.stop()
    router = make_router()
    workers = Workers(router, ADDRESSES)
    server = await place.serve(router, addresses=workers.addresses)
    workers.listeners.append(server.tell_fleet)
    return workers


async def test_an_edge_knows_an_engine_before_anything_is_placed_there(place: Place) -> None:
    workers = await place_with_workers(place)
    edge = await place.edge()
    for name in ("engine-0", "engine-1"):
        workers.remove(workers.find(name), force=True)
    worker = workers.add("http://127.0.0.1:3")
    workers.set_ranks(worker, [0, 1])
    workers.set_health(worker, True)
    placements = [await edge.route(request(), []) for _ in range(2)]
    assert {edge.addresses[each.engine] for each in placements} == {address_of(worker.url, n) for n in (0, 1)}
    await until(lambda: edge.engines == (2, 2))


async def test_what_an_edge_has_open_on_an_engine_that_has_left_ends_as_usual(place: Place) -> None:
    workers = await place_with_workers(place)
    edge = await place.edge()
    fleets: list[list[str]] = []
    edge.on_fleet = lambda addresses: fleets.append(sorted(addresses))
    open_now = {(placement := await edge.route(request(), [])).engine: placement for _ in range(2)}
    workers.remove(workers.find("engine-1"), force=True)
    await until(lambda: fleets != [])
    assert fleets == [[ADDRESSES[E0]]]
    assert edge.addresses[E1] == ADDRESSES[E1], "it may be about to be asked"
    edge.complete(open_now[E1].booking, done(Ending.ENGINE_LOST))
    assert set(edge.addresses) == {E0}
    assert {(await edge.route(request(), [])).engine for _ in range(3)} == {E0}
    edge.unreachable(E1)
    edge.heard(E1)
    assert (await edge.route(request(), [])).reason == "only_engine", "the edge is still heard"


async def test_an_engine_that_drains_gets_nothing_while_the_router_process_is_away(place: Place) -> None:
    workers = await place_with_workers(place)
    edge = await place.edge()
    workers.drain(workers.find("engine-0"), draining=True)
    await until(lambda: edge.engines == (1, 2))
    await place.stop()
    await until(lambda: not edge.connected)
    assert {(await edge.route(request(), [])).engine for _ in range(4)} == {EngineId("engine-1")}


@pytest.mark.parametrize("content", ["{", "[]", '{"next": 1}', '{"next": 1, "listed": [], "workers": [3]}'])
async def test_a_list_that_cannot_be_read_is_said_and_the_options_hold(
    content: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from router.processes.kept_workers import keep

    path = tmp_path / "workers.json"
    path.write_text(content)
    workers = Workers(make_router(), ADDRESSES)
    keep(workers, str(path))
    assert "the engines of the last router process are lost" in caplog.text
    assert set(workers.addresses) == {E0, E1}
    workers.add("http://127.0.0.1:3")
    again = Workers(make_router(), ADDRESSES)
    keep(again, str(path))
    assert again.addresses == workers.addresses
