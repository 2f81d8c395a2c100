"""What users of other routers suffer from, and what no other test here shows over real sockets. CONTRIBUTING.md lists
all fifteen faults with their tests."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import pytest

from router.types import EngineId
from tests.support.fake_engine import Script
from tests.support.gateway_server import Served, served, until

E0 = EngineId("engine-0")


def prompt(number: int) -> list[dict[str, Any]]:
    """A long prompt that shares its beginning with no other."""
    return [{"role": "user", "content": f"{number:x} " + f"story {number} " * 60}]


async def ask(gateway: Served, requests: int, at_a_time: int) -> Counter[str]:
    """Ask as many questions, each with a prompt of its own. The engines that answered."""
    numbers, found = iter(range(requests)), Counter[str]()

    async def work() -> None:
        for number in numbers:
            answer = await gateway.post(messages=prompt(number), stream=number % 2 == 0)
            assert answer.status_code == 200
            found[answer.headers["x-leafcutter-engine"]] += 1

    await asyncio.gather(*(work() for _ in range(at_a_time)))
    return found


def latencies(gateway: Served) -> object:
    """What `lbgr` has learned of them."""
    learned: Any = gateway.router.learned.dump(0.0)
    return learned["policies"]["lbgr"]["latency"]


@pytest.mark.parametrize("stream", [False, True])
async def test_health_checks_leave_the_load_as_it_is(stream: bool) -> None:
    """vLLM's router set the load of an engine to zero with every tenth health check, and hot engines got hotter."""
    gate = asyncio.Event()
    async with served(Script(gate=gate), watched=True, health_check_interval_secs=0.05) as gateway:
        checks = 0

        def count(*_: object) -> None:
            nonlocal checks
            checks += 1

        gateway.router.set_info = count  # type: ignore[method-assign, assignment]  # every twelfth check reads facts
        asked = [asyncio.create_task(gateway.post(stream=stream)) for _ in range(3)]
        await until(lambda: gateway.in_flight() == 3)
        await until(lambda: checks >= 1)
        assert gateway.value("leafcutter_in_flight", engine="engine-0") == 3
        gate.set()
        await asyncio.gather(*asked)
        await gateway.ended("ok", 3)


async def test_an_engine_that_returns_empty_does_not_get_every_new_prompt() -> None:
    """An engine without load looks best, but one that was away is asked with care, and the load of others is true."""
    async with served(Script(), Script(), Script(), policy="lbgr") as gateway:
        await ask(gateway, 60, 6)
        gateway.router.set_health(E0, False)
        assert (await ask(gateway, 30, 6))["engine-0"] == 0
        gateway.router.set_health(E0, True)
        found = await ask(gateway, 90, 6)
        assert 1 <= found["engine-0"] <= 45
        assert gateway.in_flight() == 0


@pytest.mark.parametrize("policy", ["lbgr", "least_loaded", "cache_aware", "power_of_two"])
async def test_a_burst_does_not_land_on_one_engine(policy: str) -> None:
    """Where load is booked when the answer begins, or read from metrics, all of a burst see the same idle engine."""
    gate = asyncio.Event()
    async with served(*(Script(gate=gate) for _ in range(3)), policy=policy) as gateway:
        asked = [asyncio.create_task(gateway.post(messages=prompt(number))) for number in range(18)]
        await until(lambda: sum(engine.running for engine in gateway.engines) == 18)
        running = [engine.running for engine in gateway.engines]
        gate.set()
        await asyncio.gather(*asked)
        assert max(running) <= 9, running
        assert min(running) >= 3, running


async def test_prompts_that_never_repeat_starve_no_engine() -> None:
    """A router that looks at caches alone has nothing to go by then, and may leave engines idle."""
    async with served(*(Script() for _ in range(4)), policy="lbgr") as gateway:
        found = await ask(gateway, 240, 8)
        assert len(found) == 4
        assert max(found.values()) <= 2 * min(found.values()), found


async def test_clients_that_leave_leak_no_load_and_teach_nothing() -> None:
    """Elsewhere each client that left before its answer was complete left one request behind in the count."""
    async with served(*(Script(fault="hang", after=after) for after in (None, 0)), policy="lbgr") as gateway:
        learned = latencies(gateway)
        for _ in range(5):
            asked = [asyncio.create_task(gateway.post(stream=n % 2 == 0)) for n in range(8)]
            await until(lambda: sum(engine.running for engine in gateway.engines) == 8)
            for each in asked:
                each.cancel()
            await until(lambda: gateway.in_flight() == 0 and all(engine.running == 0 for engine in gateway.engines))
        await gateway.ended("cancelled", 40)
        assert sum(engine.cancelled for engine in gateway.engines) == 40
        assert latencies(gateway) == learned
