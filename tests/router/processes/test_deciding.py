"""Edges and the router process over a real Unix socket: what is asked, told and released."""

from __future__ import annotations

import asyncio
import random
import time
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from router.config import configure
from router.core.holding import Release
from router.core.router import Router
from router.errors import BadRequest, NoEngine, NotFound, RequestError
from router.gateway.trace_writer import TraceWriter
from router.processes import protocol, remote_decider
from router.processes.protocol import frame
from router.processes.remote_decider import RemoteDecider
from router.types import Ending, EngineId, ParsedRequest
from tests.support.decision_place import ADDRESSES, E0, E1, ENGINES, Place, done, make_router, request, with_engines
from tests.support.fake_engine import MODEL
from tests.support.gateway_server import until
from tests.support.held_requests import HoldingRouter


async def test_a_placement_is_the_routers_decision_and_its_end_releases_it_once(place: Place) -> None:
    edge, asked = await place.edge(), request()
    placement = await edge.route(asked, [])
    (entry,) = place.router.find_decisions(asked.request_id)
    assert (placement.engine, placement.policy, placement.reason) == (entry.engine, entry.policy, entry.reason)
    assert placement.request is asked
    assert placement.dispatched_s == entry.at_s
    assert sum(place.load()) == 1
    edge.first_token(placement.booking, time.monotonic())
    await until(lambda: place.router._fleet.view(placement.engine).waiting == 0)
    edge.complete(placement.booking, done(first_token_s=time.monotonic(), prompt_tokens=9, output_tokens=3))
    await until(lambda: place.router.in_flight == 0)
    (entry,) = place.router.find_decisions(asked.request_id)
    assert entry.result is not None
    assert (entry.result.ending, entry.result.prompt_tokens, entry.result.output_tokens) == (Ending.OK, 9, 3)
    assert edge.idle


async def test_edges_see_each_others_load(place: Place) -> None:
    one, other = await place.edge("edge-0"), await place.edge("edge-1")
    placements = [await edge.route(request(), []) for edge in (one, other, one, other)]
    assert place.load() == [2, 2]
    assert {p.engine for p in placements[:2]} == set(ENGINES)


async def test_errors_of_the_router_come_to_the_edge(place: Place) -> None:
    edge = await place.edge()
    with pytest.raises(NotFound, match="The model `gpt-9` does not exist") as caught:
        await edge.route(request("gpt-9"), [])
    assert caught.value.param == "model"
    with pytest.raises(NoEngine):
        await edge.route(request(), ENGINES)
    with pytest.raises(BadRequest, match="too long"):
        await edge.route(request("x" * protocol.MOST_FRAME_BYTES), [])
    assert edge.idle
    assert place.router.in_flight == 0


async def test_a_client_that_leaves_while_its_route_is_asked_leaves_no_load(place: Place) -> None:
    edge = await place.edge()
    asks = [asyncio.create_task(edge.route(request(), [])) for _ in range(20)]
    await asyncio.sleep(0)
    for number, ask in enumerate(asks):
        if number % 2:
            await asyncio.sleep(0)
        ask.cancel()
    results = await asyncio.gather(*asks, return_exceptions=True)
    for result in results:
        if not isinstance(result, BaseException):  # the placement was faster
            edge.complete(result.booking, done(Ending.CANCELLED))
    await edge.route(request(), [])  # everything before it has been read
    await until(lambda: place.router.in_flight == 1)
    assert not edge._questions


async def test_the_load_of_an_edge_that_dies_is_released(place: Place) -> None:
    async with AsyncExitStack() as stack:
        other = await place.edge("edge-1")
        dying = RemoteDecider(place.path, "edge-0", time.monotonic)
        await stack.enter_async_context(dying.running())
        await dying.known.wait()
        kept = await other.route(request(), [])
        lost = [await dying.route(request(), []) for _ in range(3)]
        assert sum(place.load()) == 4
    await until(lambda: place.router.in_flight == 1)
    assert place.router._fleet.view(kept.engine).in_flight == 1
    (entry,) = place.router.find_decisions(lost[0].request.request_id)
    assert entry.result is not None
    assert entry.result.ending is Ending.CANCELLED


async def test_without_a_router_process_an_edge_decides_and_the_next_one_takes_up_what_runs(place: Place) -> None:
    edge = await place.edge()
    before = await edge.route(request(), [])
    edge.first_token(before.booking, time.monotonic())
    await place.stop()
    await until(lambda: not edge.connected)
    away = [await edge.route(request(), []) for _ in range(3)]
    assert {(p.policy, p.reason, p.fallback) for p in away} == {("least_loaded", "router_away", "least_loaded")}
    assert sorted(edge._in_flight.values()) == [2, 2]
    with pytest.raises(NoEngine):
        await edge.route(request("gpt-9"), [])
    edge.complete(away.pop().booking, done())

    await place.serve(make_router(policy="lmetric"))
    await until(lambda: edge.connected)
    after = await edge.route(request(), [])
    assert (after.policy, after.fallback) == ("lmetric", None)
    assert place.load() == list(edge._in_flight.values())
    view = place.router._fleet.view(before.engine)
    assert view.in_flight - view.waiting == 1  # its first token is known
    (entry,) = place.router.find_decisions(away[0].request.request_id)
    assert (entry.reason, entry.fallback) == ("router_away", "least_loaded")
    for placement in (before, *away, after):
        edge.complete(placement.booking, done())
    await until(lambda: place.router.in_flight == 0)
    assert edge.idle


async def test_what_is_asked_when_the_router_process_dies_is_decided_by_the_edge(tmp_path: Path) -> None:
    greeted = asyncio.Event()

    async def deaf(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(4)
        fleet = protocol.Fleet("lbgr", [protocol.Engine(engine, ADDRESSES[engine], True, []) for engine in ENGINES])
        if not greeted.is_set():
            greeted.set()
            writer.write(frame(protocol.Welcome(protocol.VERSION, False)) + frame(fleet))
            await asyncio.sleep(0.1)
        writer.close()

    path = str(tmp_path / "decisions")
    async with await asyncio.start_unix_server(deaf, path):
        edge = RemoteDecider(path, "edge-0", time.monotonic)
        async with edge.running():
            await edge.known.wait()
            first, none = await asyncio.gather(
                edge.route(request(), []), edge.route(request(), ENGINES), return_exceptions=True
            )
            assert not isinstance(first, BaseException)
            assert (first.policy, first.reason) == ("lbgr", "router_away")
            assert isinstance(none, NoEngine)


async def test_a_router_process_that_falls_silent_is_taken_to_be_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote_decider, "PATIENCE_S", 0.1)
    greeted = 0

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal greeted
        greeted += 1
        if greeted == 1:
            fleet = protocol.Fleet("lbgr", [protocol.Engine(E1, ADDRESSES[E1], True, [MODEL])])
            writer.write(frame(protocol.Welcome(protocol.VERSION, False)) + frame(fleet))
        await reader.read()
        writer.close()

    path = str(tmp_path / "decisions")
    async with await asyncio.start_unix_server(silent, path):
        edge = RemoteDecider(path, "edge-0", time.monotonic)
        async with edge.running():
            await edge.known.wait()
            assert (await edge.route(request(), [])).reason == "router_away"
            begin_s = time.monotonic()
            assert (await edge.route(request(), [])).engine == E1
            assert time.monotonic() - begin_s < 0.05


async def test_the_health_of_the_fleet_comes_to_the_edges(place: Place) -> None:
    edge = await place.edge()
    assert edge.engines[0] == 2
    edge.unreachable(E0)
    await until(lambda: not place.router.healthy(E0))
    assert edge.engines[0] == 1
    place.router.set_health(E0, True)
    await until(lambda: edge.engines[0] == 2)
    place.router.set_health(E1, False)
    place.router.assign({"lmetric": 1.0})
    await until(lambda: edge.engines[0] == 1)
    await place.stop()
    await until(lambda: not edge.connected)
    placement = await edge.route(request(), [])
    assert (placement.engine, placement.policy) == (E0, "lmetric")


async def test_the_edges_say_which_engines_live_and_hear_which_are_taken_out(place: Place) -> None:
    edges = [await place.edge(name) for name in ("edge-0", "edge-1")]
    out: list[list[EngineId]] = [[], []]
    for edge, moved in zip(edges, out, strict=True):
        edge.on_out = moved.append
    heard = place.router._fleet._engines[E0]
    assert heard.heard_s < 0
    edges[1].heard(E0)
    await until(lambda: heard.heard_s > 0)

    place.router.take_out(E0)
    await until(lambda: out == [[E0], [E0]])
    assert [edge.engines[0] for edge in edges] == [1, 1]
    place.router.take_out(E1)  # nobody else could serve what waits for it
    await until(lambda: edges[0].engines[0] == 0)
    assert out == [[E0], [E0]]


async def test_a_fault_of_the_router_fails_that_request_alone(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    class Faulty(Router):
        def route(self, request: ParsedRequest, now: float, **given: Any) -> Any:
            if request.model == "fault":
                raise RuntimeError("on purpose")
            return super().route(request, now, **given)

    config = configure(policy="least_loaded")
    router = with_engines(Faulty(config.routing, config.policies, rng=random.Random(1)))
    await place.stop()
    await place.serve(router)
    edge = await place.edge()
    with pytest.raises(RequestError) as caught:
        await edge.route(request("fault"), [])
    assert (caught.value.code, caught.value.message) == ("gateway_fault", "The gateway failed.")
    assert "on purpose" in caplog.text
    await edge.route(request(), [])


async def test_the_recording_gets_the_requests_of_all_edges(place: Place, tmp_path: Path) -> None:
    file = tmp_path / "trace.jsonl"
    writer = TraceWriter(str(file), max_bytes=1 << 20, files=1, salt=bytes(32))
    await place.stop()
    with writer.running():
        server = await place.serve(recording=writer)
        one, other = await place.edge("edge-0"), await place.edge("edge-1")
        for edge in (one, other):
            arrival_s = time.monotonic()
            number = edge.arrived(arrival_s)
            placement = await edge.route(request(), [])
            outcome = done(prompt_tokens=40, output_tokens=3)
            edge.complete(placement.booking, outcome)
            edge.ended(number, arrival_s, placement, outcome)
        lost = one.arrived(time.monotonic())
        await one.route(request(), [])
        assert len(server.edges) == 2
        await place.stop()
        await until(lambda: not one.connected)
        one.ended(lost, 0.0, None, None)
    lines = file.read_text().splitlines()
    assert len(lines) == 2
    assert all('"input_length":40' in line for line in lines)
    assert writer.counts == {"written": 2, "left_out": 1, "dropped": 0, "lost": 0}


# --- held requests --------------------------------------------------------------------------------------------------


async def held(place: Place, router: HoldingRouter, name: str = "edge-0") -> tuple[RemoteDecider, asyncio.Task[Any]]:
    """An edge with a request that is held."""
    await place.stop()
    await place.serve(router)
    edge = await place.edge(name)
    await until(lambda: edge.connected)
    first = await edge.route(request(), [])
    edge.complete(first.booking, done())
    await until(lambda: router.in_flight == 0)
    asking = asyncio.create_task(edge.route(request(), []))
    await until(lambda: router.holding.status().held == 1)
    return edge, asking


async def test_a_held_request_is_answered_when_it_may_go_on(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote_decider, "PATIENCE_S", 0.1)
    router = HoldingRouter()
    edge, asking = await held(place, router)
    await asyncio.sleep(0.3)  # so long without an answer would mean that the router process is away
    assert edge.connected
    router.let_in(Release.FITS)
    placement = await asking
    assert placement.held_s >= 0.3
    assert router.in_flight == 1
    edge.complete(placement.booking, done())
    await until(lambda: router.in_flight == 0)


async def test_a_client_that_leaves_while_it_is_held_is_told_of(place: Place) -> None:
    router = HoldingRouter()
    edge, asking = await held(place, router)
    asking.cancel()
    await until(lambda: router.holding.status().held == 0)
    assert edge.idle
    assert router.in_flight == 0
    assert router.holding.status().released["left"] == 1


async def test_an_edge_that_dies_holds_nothing(place: Place) -> None:
    router = HoldingRouter()
    edge, asking = await held(place, router)
    assert edge._link is not None
    edge._link.cut("on purpose")
    placement = await asking  # the edge decides by itself
    assert placement.reason == "router_away"
    await until(lambda: router.holding.status().held == 0)


async def test_a_held_request_that_no_engine_can_take_is_refused(place: Place) -> None:
    router = HoldingRouter()
    _, asking = await held(place, router)
    await router.lose_engines()
    with pytest.raises(NoEngine):
        await asking
