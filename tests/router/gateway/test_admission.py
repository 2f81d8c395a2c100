from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from router.config import configure
from router.errors import GatewayFull
from router.gateway.admission import Admission
from router.gateway.metrics import Metrics
from router.gateway.tenants import ClientKey
from tests.support.fake_engine import Script
from tests.support.gateway_server import BODIES, CHAT, error_of, served, until


class Gate:
    """An admission with a clock that stands still unless it is moved, and what its metrics say."""

    def __init__(self, **options: Any) -> None:
        self.now_s = 0.0
        self.registry = CollectorRegistry()
        server = configure(**{"max_concurrent_requests": 1, **options}).server
        self.admission = Admission(server, Metrics(self.registry), lambda: self.now_s)
        self.order: list[str] = []

    def value(self, name: str, **labels: str) -> float:
        return self.registry.get_sample_value(f"leafcutter_{name}", labels) or 0.0

    async def ask(self, name: str, key: str = "", weight: float = 1.0) -> asyncio.Task[None]:
        """Ask for a place. The task is done when there is one."""

        async def enter() -> None:
            await self.admission.enter(ClientKey(key, weight=weight))
            self.order.append(name)

        task = asyncio.create_task(enter())
        await settle()
        return task

    async def leave(self, times: int = 1, held_s: float = 1.0) -> None:
        for _ in range(times):
            self.admission.leave(held_s)
            await settle()

    def is_empty(self) -> bool:
        admission = self.admission
        return not (admission.running or admission.waiting or admission._queue or self.value("queue_length"))


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_who_finds_a_place_does_not_wait_and_is_not_counted() -> None:
    gate = Gate(max_concurrent_requests=2)
    await gate.ask("a")
    await gate.ask("b", "key")
    assert (gate.order, gate.admission.running, gate.value("queue_seconds_count")) == (["a", "b"], 2, 0)
    await gate.leave(2)
    assert gate.is_empty()


async def test_within_a_key_first_come_is_first_served_and_keys_take_turns() -> None:
    gate = Gate()
    await gate.ask("running", "a")
    for name in ("a1", "a2", "a3", "a4"):
        await gate.ask(name, "a")
    for name in ("b1", "b2"):
        await gate.ask(name, "b")
    await gate.ask("n1")
    assert gate.value("queue_length") == 7
    await gate.leave(8)
    assert gate.order == ["running", "b1", "n1", "a1", "b2", "a2", "a3", "a4"]
    assert gate.is_empty()
    assert gate.value("queue_seconds_count") == 7


async def test_keys_that_always_wait_share_the_places_by_their_weights() -> None:
    gate = Gate(queue_size=1000)
    await gate.ask("")
    weights = {"a": 1.0, "b": 2.0, "c": 0.5}
    for key, weight in weights.items():
        for _ in range(100):
            await gate.ask(key, key, weight)
    await gate.leave(70)
    for key, weight in weights.items():
        assert abs(gate.order[1:].count(key) - 20 * weight) <= 1
    longest = max(len(run) for run in "".join(gate.order).replace("a", " ").replace("c", " ").split())
    assert longest <= 4  # they alternate


async def test_who_had_nothing_to_ask_for_saves_up_nothing_and_who_was_alone_owes_nothing() -> None:
    gate = Gate()
    for _ in range(50):
        await gate.ask("alone", "a")
        await gate.leave()
    await gate.ask("running", "a")
    for name in ("a1", "a2", "a3"):
        await gate.ask(name, "a")
    for name in ("b1", "b2", "b3"):
        await gate.ask(name, "b")
    await gate.leave(6)
    assert gate.order[-6:] == ["b1", "a1", "b2", "a2", "b3", "a3"]


async def test_a_key_that_comes_anew_after_each_request_gets_no_more_than_its_weight() -> None:
    gate = Gate()
    await gate.ask("b", "b")
    for _ in range(60):
        await gate.ask("b", "b")
    for _ in range(30):
        if "a" not in gate.admission._queue:
            await gate.ask("a", "a", 0.25)
        await gate.leave()
    assert gate.order.count("a") <= 30 / 5 + 1


async def test_the_predicted_wait_counts_the_turns_of_the_other_keys() -> None:
    gate = Gate(queue_timeout_secs=100)
    await gate.ask("x")
    await gate.leave(held_s=1.0)
    await gate.ask("running", "b", 2.0)
    for _ in range(6):
        await gate.ask("b", "b", 2.0)
    for _ in range(2):
        await gate.ask("a", "a")
    share = gate.admission._shares["a"]
    predicted = gate.admission._predicted_wait_s(share)
    await gate.ask("last", "a")
    turns = 0
    while gate.order[-1] != "last":
        await gate.leave(held_s=1.0)
        turns += 1
    assert predicted == turns < 9


async def test_a_longer_wait_than_allowed_is_refused_at_once_with_the_predicted_one() -> None:
    gate = Gate(max_concurrent_requests=2, queue_timeout_secs=10)
    for _ in range(40):
        await gate.ask("x")
        await gate.leave(held_s=8.0)
    await gate.ask("a")
    await gate.ask("b")
    assert not (await gate.ask("c")).done()  # one turn of 8 s / 2 places
    assert not (await gate.ask("d")).done()
    refused = await gate.ask("e")  # three turns: 12 s
    with pytest.raises(GatewayFull) as told:
        refused.result()
    assert told.value.retry_after_s == 12
    assert (b"retry-after", b"12") in told.value.headers
    assert gate.value("refusals_total", reason="gateway_full") == 1
    for _ in range(4):
        await gate.leave()
    assert gate.is_empty()


async def test_engines_that_hang_let_nobody_in() -> None:
    gate = Gate(queue_timeout_secs=10)
    await gate.ask("x")
    await gate.leave(held_s=0.1)
    await gate.ask("hangs")
    gate.now_s += 11
    with pytest.raises(GatewayFull) as told:
        (await gate.ask("y")).result()
    assert told.value.retry_after_s == 11
    await gate.leave()
    assert gate.is_empty()


async def test_a_full_queue_refuses_and_one_that_waited_too_long_is_let_go() -> None:
    gate = Gate(queue_size=1, queue_timeout_secs=0.05)
    await gate.ask("a")
    waits = await gate.ask("b")
    with pytest.raises(GatewayFull):
        (await gate.ask("c")).result()
    with pytest.raises(GatewayFull):
        await waits
    assert gate.admission.waiting == 0
    await gate.leave()
    assert gate.is_empty()
    assert gate.value("refusals_total", reason="gateway_full") == 2


async def test_without_a_queue_nobody_waits() -> None:
    gate = Gate(queue_size=0)
    await gate.ask("a")
    with pytest.raises(GatewayFull):
        (await gate.ask("b")).result()
    await gate.leave()
    assert gate.is_empty()


async def test_in_a_full_queue_a_key_with_fewer_waiting_pushes_out_the_newest_of_the_greediest() -> None:
    gate = Gate(queue_size=3)
    await gate.ask("running", "a")
    first, second, third = [await gate.ask(name, "a") for name in ("a1", "a2", "a3")]
    modest = await gate.ask("b1", "b")
    with pytest.raises(GatewayFull):
        third.result()
    assert [task.done() for task in (first, second, modest)] == [False] * 3
    other = await gate.ask("c1", "c")
    with pytest.raises(GatewayFull):
        second.result()
    with pytest.raises(GatewayFull):
        (await gate.ask("a4", "a")).result()  # no fairer
    await gate.leave(4)
    assert gate.order == ["running", "b1", "c1", "a1"]
    assert other.done()
    assert gate.is_empty()


async def test_what_is_fair_in_a_full_queue_depends_on_the_weights() -> None:
    gate = Gate(queue_size=3)
    await gate.ask("running")
    tasks = [await gate.ask("a", "a", 2.0) for _ in range(3)]
    assert not (await gate.ask("b", "b", 0.5)).done()  # two of weight 2 are more than none
    with pytest.raises(GatewayFull):
        tasks[2].result()
    with pytest.raises(GatewayFull):
        (await gate.ask("b", "b", 0.5)).result()  # one of weight 2 is less than one of weight 0.5
    assert not (await gate.ask("c", "c", 0.01)).done()  # but nobody's last one is taken
    assert not tasks[0].done()
    with pytest.raises(GatewayFull):
        (await gate.ask("d", "d", 1000.0)).result()


async def test_who_leaves_while_it_waits_gives_its_place_back_once() -> None:
    gate = Gate()
    await gate.ask("a")
    tasks = [await gate.ask(name) for name in ("b", "c", "d")]
    tasks[1].cancel()
    await settle()
    assert gate.value("queue_length") == 2
    await gate.leave()
    tasks[2].cancel()
    await settle()
    assert gate.order == ["a", "b"]
    await gate.leave()
    assert gate.is_empty()


async def test_who_leaves_at_the_moment_of_its_turn_passes_it_on() -> None:
    gate = Gate()
    await gate.ask("a")
    second, third = await gate.ask("b", "k"), await gate.ask("c")
    gate.admission.leave(1.0)  # the place is given to b
    second.cancel()  # before it knows
    await settle()
    assert gate.order == ["a", "c"]
    third.cancel()
    await gate.leave()
    assert gate.is_empty()


async def test_who_has_left_when_its_turn_comes_is_passed_over() -> None:
    gate = Gate()
    await gate.ask("a")
    second = await gate.ask("b")
    await gate.ask("c")
    second.cancel()
    gate.admission.leave(1.0)  # before b's task has run
    await settle()
    assert gate.order == ["a", "c"]
    await gate.leave()
    assert gate.is_empty()


async def test_after_any_course_of_events_nothing_is_left_and_the_limit_was_kept() -> None:
    chance = random.Random(5)
    for _ in range(60):
        gate = Gate(max_concurrent_requests=chance.randint(1, 4), queue_size=chance.randint(0, 6))

        async def request(key: ClientKey, gate: Gate = gate) -> None:
            await gate.admission.enter(key)
            try:
                assert gate.admission.running <= gate.admission._places
                for _ in range(chance.randint(0, 4)):
                    await asyncio.sleep(0)
            finally:
                gate.admission.leave(0.01)

        tasks = []
        for _ in range(60):
            tasks.append(
                asyncio.create_task(
                    request(ClientKey(chance.choice(["", "a", "b"]), weight=chance.choice([0.5, 1, 3])))
                )
            )
            if chance.random() < 0.3:
                chance.choice(tasks).cancel()
            if chance.random() < 0.7:
                await asyncio.sleep(0)
        for ended in await asyncio.gather(*tasks, return_exceptions=True):
            assert ended is None or isinstance(ended, GatewayFull | asyncio.CancelledError), ended
        assert gate.is_empty()


# --- the whole gateway ------------------------------------------------------------------------------------------------


@asynccontextmanager
async def busy(**options: Any) -> AsyncIterator[tuple[Any, asyncio.Event, asyncio.Task[Any]]]:
    """A gateway with one place, which a stream has."""
    gate = asyncio.Event()
    async with served(Script(gate=gate), max_concurrent_requests=1, **options) as gateway:
        first = asyncio.create_task(gateway.post(stream=True))
        await gateway.engines[0].arrived.wait()
        yield gateway, gate, first


async def test_a_request_waits_for_its_turn_and_is_served() -> None:
    async with busy() as (gateway, gate, first):
        second = asyncio.create_task(gateway.post())
        await until(lambda: gateway.value("leafcutter_queue_length") == 1)
        assert len(gateway.engines[0].requests) == 1
        gate.set()
        assert [(await each).status_code for each in (first, second)] == [200, 200]
        await gateway.ended("ok", 2)
        assert gateway.value("leafcutter_queue_length") == 0


@pytest.mark.parametrize("stream", [False, True])
async def test_a_full_gateway_says_when_to_come_back(stream: bool) -> None:
    async with busy(queue_size=0) as (gateway, gate, first):
        response = await gateway.post(stream=stream)
        assert (response.status_code, error_of(response)["code"]) == (503, "gateway_full")
        assert int(response.headers["retry-after"]) >= 1
        gate.set()
        assert (await first).status_code == 200
        assert (await gateway.post()).status_code == 200
        assert gateway.endings() == {"ok": 2, "rejected": 1}


async def test_a_client_that_leaves_the_queue_is_noticed() -> None:
    async with busy() as (gateway, gate, first):
        waits = asyncio.create_task(gateway.client.post(CHAT, json=BODIES[CHAT]))
        await until(lambda: gateway.value("leafcutter_queue_length") == 1)
        waits.cancel()
        await until(lambda: gateway.endings() == {"cancelled": 1})
        assert gateway.value("leafcutter_queue_length") == 0
        gate.set()
        assert (await first).status_code == 200
        assert len(gateway.engines[0].requests) == 1
