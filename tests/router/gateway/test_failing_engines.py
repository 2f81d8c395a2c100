"""A gateway in front of engines that fail without dying: their health checks pass all the time."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest

from router.types import EngineId
from tests.support.fake_engine import Script
from tests.support.gateway_server import Served, error_of, served, until

E0 = EngineId("engine-0")
FAULTS = [
    {"status": 500, "error": {"message": "dead", "code": 500}},
    {"status": 502, "error": {"message": "bad gateway"}},
    {"status": 503, "error": {"message": "busy"}},
    {"status": 429, "error": {"message": "slow down"}},
    {"status": 504, "error": {"message": "late"}},
    {"fault": "reset"},
    {"fault": "cut"},
    {"fault": "reset", "after": 0},
]


async def ask(gateway: Served, requests: int, at_a_time: int) -> Counter[int]:
    """Ask for so many answers, every other one streamed; count their statuses. 0: a stream that ended in an error."""
    statuses, numbers = Counter[int](), iter(range(requests))

    async def work() -> None:
        for number in numbers:
            response = await gateway.post(stream=number % 2 == 0)
            whole = response.status_code != 200 or "error" not in response.text
            statuses[response.status_code if whole else 0] += 1

    await asyncio.gather(*(work() for _ in range(at_a_time)))
    return statuses


@pytest.mark.parametrize("policy", ["lbgr", "round_robin"])
@pytest.mark.parametrize("bad", [1, 2])
@pytest.mark.parametrize("fault", FAULTS, ids=str)
async def test_engines_that_fail_at_once_lose_less_than_one_in_a_hundred(
    policy: str, bad: int, fault: dict[str, object]
) -> None:
    scripts = [Script(**fault) for _ in range(bad)] + [Script() for _ in range(3 - bad)]  # type: ignore[arg-type]
    async with served(*scripts, policy=policy, seed=1) as gateway:
        statuses = await ask(gateway, 300, 10)
        assert statuses[200] >= 298, statuses
        assert gateway.in_flight() == 0
        assert sum(len(engine.requests) for engine in gateway.engines[:bad]) <= 60


async def test_an_engine_that_breaks_off_streams_loses_few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("router.core.reliability.BASE_S", 60.0)  # on no machine it returns within the test
    async with served(Script(fault="reset", after=1), Script(), Script(), seed=1) as gateway:
        statuses = await ask(gateway, 300, 5)
        assert statuses[0] <= 5, statuses
        assert gateway.router.status().engines[E0].ejections == 1


async def test_an_engine_that_works_again_gets_its_share_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("router.core.reliability.BASE_S", 0.1)
    async with served(Script(fault="reset"), Script(), policy="round_robin") as gateway:
        assert (await ask(gateway, 20, 4))[200] == 20
        assert gateway.router.status().engines[E0].share == "ejected"
        gateway.engines[0].script = Script()
        await asyncio.sleep(0.15)
        assert (await ask(gateway, 60, 4))[200] == 60
        assert gateway.router.status().engines[E0].share == "full"
        assert gateway.value("leafcutter_engine_ejections_total", engine="engine-0") >= 1
        assert gateway.value("leafcutter_engine_ejected", engine="engine-0") == 0


async def test_a_client_whose_requests_fail_everywhere_takes_no_engine_from_the_others() -> None:
    error = {"message": "cannot", "code": 500}
    async with served(*[Script(status=500, error=error) for _ in range(3)]) as gateway:
        for _ in range(3):
            assert (await gateway.post()).status_code == 500
        for engine in gateway.engines:
            engine.script = Script()
        assert {(await gateway.post()).status_code for _ in range(10)} == {200}
        assert {each.share for each in gateway.router.status().engines.values()} == {"full"}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("after", [None, 0])
async def test_requests_without_a_byte_move_when_their_engine_is_taken_out(
    stream: bool, after: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("router.core.retries.BUDGET_S", 0.0)  # many may have waited for long
    async with served(Script(fault="hang", after=after), Script(), policy="round_robin") as gateway:
        asked = [asyncio.create_task(gateway.post(stream=stream)) for _ in range(6)]
        await until(lambda: gateway.engines[0].running == 3 and gateway.endings().get("ok") == 3)
        await asyncio.sleep(0.05)  # until the heads have come
        gateway.router.take_out(E0)
        answers = await asyncio.gather(*asked)
        assert {answer.status_code for answer in answers} == {200}
        assert {answer.headers["x-leafcutter-engine"] for answer in answers} == {"engine-1"}
        assert gateway.value("leafcutter_retries_total", reason="moved") == 3
        await gateway.ended("ok", 6)


async def test_a_stream_that_has_begun_stays_when_its_engine_is_taken_out() -> None:
    gate = asyncio.Event()
    async with served(Script(fault="hang", after=1, strike=gate), Script(), policy="round_robin") as gateway:
        streamed = asyncio.create_task(gateway.post(stream=True))
        await until(lambda: gateway.engines[0].running == 1)
        await asyncio.sleep(0.05)
        gateway.router.take_out(E0)
        await asyncio.sleep(0.05)
        assert not streamed.done()
        streamed.cancel()
        await gateway.ended("cancelled")


async def test_nobody_moves_if_no_other_engine_is_there() -> None:
    async with served(Script(fault="hang")) as gateway:
        asked = asyncio.create_task(gateway.post())
        await until(lambda: gateway.engines[0].running == 1)
        gateway.router.take_out(E0)
        await asyncio.sleep(0.05)
        assert not asked.done()
        asked.cancel()
        await gateway.ended("cancelled")


async def test_work_that_is_lost_is_not_done_again_beyond_the_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("router.core.retries.BUDGET_S", 0.0)
    async with served(*[Script(fault="cut", after=0) for _ in range(3)]) as gateway:
        response = await gateway.post(stream=True)
        assert (response.status_code, error_of(response)["code"]) == (502, "engine_lost")
        assert sum(len(engine.requests) for engine in gateway.engines) == 1
