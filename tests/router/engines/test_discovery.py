"""The watch over the engines: health by thresholds, facts when they can have changed."""

import asyncio
import errno
import logging
import random
from dataclasses import replace

import httpx
import pytest

from router.config import configure
from router.core.router import Router
from router.core.workers import Workers
from router.engines import probe
from router.engines.discovery import REFRESH_CHECKS, Discovery
from router.types import EngineId

E0, E1 = EngineId("engine-0"), EngineId("engine-1")
MODELS = '{"data": [{"id": "m"}]}'


class Engine:
    """Answers as an engine; what it does may change while it is watched."""

    def __init__(self) -> None:
        self.up, self.models, self.checks, self.out_of_files = True, MODELS, 0, False

    def __call__(self, request: httpx.Request) -> httpx.Response:
        if request.url.path == "/health":
            self.checks += 1
        if self.out_of_files:
            raise httpx.ConnectError("failed") from OSError(errno.EMFILE, "Too many open files")
        if not self.up:
            raise httpx.ConnectError("refused")
        text = {"/health": "ok", "/v1/models": self.models}.get(request.url.path)
        return httpx.Response(404 if text is None else 200, text=text or "")

    def client(self) -> httpx.AsyncClient:
        return httpx.AsyncClient(transport=httpx.MockTransport(self))

    async def checked(self, times: int) -> None:
        """Returns when `times` more checks have been answered."""
        goal = self.checks + times
        while self.checks < goal:
            await asyncio.sleep(0.001)
        await asyncio.sleep(0.005)


def watch(engine: Engine, **options: object) -> tuple[Discovery, Router]:
    config = configure(**options)
    config = replace(config, engines=replace(config.engines, health_check_interval_secs=0.01))  # less than is allowed
    router = Router(config.routing, rng=random.Random(0))
    return Discovery(config, Workers(router, {E0: "http://e:1"}), engine.client()), router


async def test_an_engine_is_known_as_soon_as_the_watch_runs() -> None:
    discovery, router = watch(Engine())
    async with discovery.running():
        assert router.healthy(E0)
        assert router.status().engines[E0].info.models == ("m",)


async def test_failures_in_a_row_take_an_engine_out_and_successes_bring_it_back() -> None:
    engine = Engine()
    discovery, router = watch(engine, health_failure_threshold=3, health_success_threshold=2)
    async with discovery.running():
        await engine.checked(2)
        assert router.healthy(E0)
        engine.up = False
        await engine.checked(4)
        assert not router.healthy(E0)
        engine.up = True
        await engine.checked(3)
        assert router.healthy(E0)


async def test_an_engine_that_is_down_at_the_start_is_found_later() -> None:
    engine = Engine()
    engine.up = False
    discovery, router = watch(engine)
    async with discovery.running():
        assert not router.healthy(E0)
        engine.up = True
        await engine.checked(2)
        assert router.healthy(E0)


async def test_facts_are_read_anew_when_an_engine_comes_back() -> None:
    engine = Engine()
    discovery, router = watch(engine, health_failure_threshold=1)
    async with discovery.running():
        engine.up = False
        await engine.checked(2)
        engine.up, engine.models = True, '{"data": [{"id": "other"}]}'
        await engine.checked(2)
        assert router.status().engines[E0].info.models == ("other",)


async def test_an_engine_whose_facts_cannot_be_read_stays_out(caplog: pytest.LogCaptureFixture) -> None:
    engine = Engine()
    engine.models = "not json"
    discovery, router = watch(engine)
    with caplog.at_level(logging.WARNING):
        async with discovery.running():
            await engine.checked(2)
            assert not router.healthy(E0)
    assert "engine-0: a check failed: /v1/models answers something that is not JSON" in caplog.text


async def test_an_engine_whose_facts_can_no_longer_be_read_is_taken_out() -> None:
    engine = Engine()
    discovery, router = watch(engine, health_failure_threshold=3)
    async with discovery.running():
        assert router.healthy(E0)
        engine.models = '{"data": null}'
        await engine.checked(REFRESH_CHECKS + 3)
        assert not router.healthy(E0)
        engine.models = MODELS
        await engine.checked(2)
        assert router.healthy(E0)


async def test_an_engine_that_never_answers_does_not_hold_up_the_others_nor_the_start() -> None:
    never = asyncio.Event()

    async def answer(request: httpx.Request) -> httpx.Response:
        if request.url.host == "slow":
            await never.wait()
        return httpx.Response(200, text=MODELS)

    config = configure(health_check_timeout_secs=600)
    router = Router(config.routing, rng=random.Random(0))
    engines = {E0: "http://slow:1", EngineId("engine-1"): "http://e:1"}
    client = httpx.AsyncClient(transport=httpx.MockTransport(answer), timeout=600)
    async with Discovery(config, Workers(router, engines), client).running():
        assert [router.healthy(name) for name in engines] == [False, True]


async def test_a_fault_in_the_check_itself_ends_neither_the_start_nor_the_watch(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Faulty(Discovery):
        broken = True

        def learned(self, engine: EngineId, report: probe.Report) -> None:
            if self.broken:
                raise ZeroDivisionError
            super().learned(engine, report)

    engine = Engine()
    sound, router = watch(engine)
    discovery = Faulty(sound.config, sound.workers, engine.client())
    async with discovery.running():
        assert not router.healthy(E0)
        discovery.broken = False
        await engine.checked(2)
        assert router.healthy(E0)
    assert "the check itself failed" in caplog.text


async def test_a_lack_of_file_descriptors_is_no_verdict_on_an_engine(caplog: pytest.LogCaptureFixture) -> None:
    engine = Engine()
    discovery, router = watch(engine, health_failure_threshold=1)
    async with discovery.running():
        engine.out_of_files = True
        await engine.checked(5)
        assert router.healthy(E0)
    assert "engine-0: a check failed: this machine has no file descriptor left" in caplog.text


async def test_what_cannot_be_true_is_said_once_and_the_engine_serves(caplog: pytest.LogCaptureFixture) -> None:
    engine = Engine()
    engine.models = '{"data": [{"id": "m"}, {"id": 3}]}'
    discovery, router = watch(engine)
    async with discovery.running():
        await engine.checked(2 * REFRESH_CHECKS)
        assert router.healthy(E0)
    assert sum("reports what cannot be used: 1 models" in message for message in caplog.messages) == 1


async def test_a_missing_plugin_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    engine = Engine()
    discovery, _ = watch(engine)
    with caplog.at_level(logging.WARNING):
        async with discovery.running():
            await engine.checked(30)
    assert sum("no eviction state" in message for message in caplog.messages) == 1


class Hanging(Engine):
    """An engine that passes its health checks; `hangs`: it answers no request for a completion."""

    def __init__(self) -> None:
        super().__init__()
        self.hangs, self.asked = True, 0

    def __call__(self, request: httpx.Request) -> httpx.Response:
        if request.url.path == "/v1/completions":
            self.asked += 1
            assert b'"max_tokens":1' in request.content
            if self.hangs:
                raise httpx.ReadTimeout("silence")
            return httpx.Response(404, text="no such task")  # an answer all the same
        return super().__call__(request)


async def test_an_engine_that_hangs_is_taken_out_until_it_computes_again(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Hanging()
    discovery, router = watch(engine)
    silent = False
    monkeypatch.setattr(router, "is_silent", lambda _engine, _now: silent)
    async with discovery.running():
        await engine.checked(3)
        assert engine.asked == 0, "an engine that is not silent is not asked"
        silent = True
        await engine.checked(2)
        assert engine.asked >= 1
        assert not router.healthy(E0)
        await engine.checked(3)
        assert not router.healthy(E0), "passing its health checks does not bring it back"
        engine.hangs = silent = False
        await engine.checked(3)
        assert router.healthy(E0)


async def test_a_silent_engine_that_computes_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Hanging()
    engine.hangs = False
    discovery, router = watch(engine)
    heard = list[EngineId]()
    monkeypatch.setattr(router, "is_silent", lambda _engine, _now: not heard)
    monkeypatch.setattr(router, "heard", lambda engine, _now: heard.append(engine))
    async with discovery.running():
        await engine.checked(3)
        assert router.healthy(E0)
    assert (engine.asked, heard) == (1, [E0])


async def test_requests_of_an_engine_whose_checks_fail_are_moved_once(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine()
    discovery, router = watch(engine, health_failure_threshold=3)
    out = list[EngineId]()
    monkeypatch.setattr(router, "on_out", out.append)
    router.add_engine(E1)
    router.set_health(E1, True)
    async with discovery.running():
        router.set_health(E0, False)  # as after a refused connection
        engine.up = False
        await engine.checked(6)
    assert out == [E0]


# --- engines that come and go, and ranks --------------------------------------------------------------------------


async def test_an_engine_that_comes_later_is_watched_and_one_that_is_gone_is_not() -> None:
    engine = Engine()
    discovery, router = watch(engine)
    workers = discovery.workers
    async with discovery.running():
        worker = workers.add("http://f:1")
        while not workers.healthy(worker):
            await asyncio.sleep(0.001)
        assert router.models(E1) == ("m",)
        for each in list(workers):
            workers.remove(each, force=True)
        await asyncio.sleep(0.02)
        checks = engine.checks
        await asyncio.sleep(0.05)
        assert engine.checks == checks
    assert not discovery.workers.listeners


class Ranked(Engine):
    """A server of data-parallel ranks. silent: those that answer no request for a completion."""

    def __init__(self, *ranks: int) -> None:
        super().__init__()
        self.ranks, self.silent = ranks, set[str]()
        self.states: list[int] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        url = request.url
        if url.path == "/v1/completions" and request.headers.get("x-data-parallel-rank") in self.silent:
            raise httpx.ReadTimeout("silence")
        if url.path != "/metrics" or not self.up:
            return super().__call__(request)
        if url.port != 1:
            self.states.append(url.port or 0)
            return httpx.Response(200, text=f'leafcutter_engine_info{{order="o{url.port}",plugin_version="1"}} 1\n')
        lines = [f'vllm:cache_config_info{{block_size="16",engine="{n}",num_gpu_blocks="9"}} 1.0\n' for n in self.ranks]
        return httpx.Response(200, text='vllm:other{engine="77"} 1\n' + "".join(lines))


async def test_each_rank_is_an_engine_with_the_state_on_its_own_port() -> None:
    engine = Ranked(0, 1, 2, 10)
    discovery, router = watch(engine)
    async with discovery.running():
        found = router.status().engines
        assert {name: (each.healthy, each.info.order) for name, each in found.items()} == {
            "engine-0-dp0": (True, "o1001"),
            "engine-0-dp1": (True, "o1002"),
            "engine-0-dp2": (True, "o1003"),
            "engine-0-dp10": (True, "o1011"),
        }
        assert discovery.workers.addresses[EngineId("engine-0-dp10")] == "http://e:1#3"


async def test_one_rank_of_an_external_balancer_is_one_engine() -> None:
    engine = Ranked(3)
    discovery, router = watch(engine)
    async with discovery.running():
        assert router.status().engines[E0].info.order == "o1004"
        assert discovery.workers.addresses == {E0: "http://e:1"}


async def test_ranks_follow_an_engine_that_restarts_with_others() -> None:
    engine = Ranked(0, 1)
    discovery, router = watch(engine, health_failure_threshold=1)
    async with discovery.running():
        engine.up = False
        await engine.checked(2)
        assert discovery.workers.healthy_engines() == (0, 2)
        engine.up, engine.ranks = True, ()
        await engine.checked(2)
        assert discovery.workers.healthy_engines() == (2, 2), "a page without ranks says nothing"
        engine.up, engine.ranks = False, (0,)
        await engine.checked(2)
        engine.up = True
        await engine.checked(2)
        assert {name: each.healthy for name, each in router.status().engines.items()} == {E0: True}


async def test_a_rank_that_hangs_takes_its_server_out(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Ranked(0, 1)
    discovery, router = watch(engine)
    monkeypatch.setattr(router, "is_silent", lambda name, _now: name == "engine-0-dp1")
    async with discovery.running():
        engine.silent = {"1"}
        await engine.checked(3)
        assert discovery.workers.healthy_engines() == (0, 2)
        engine.silent = set()
        await engine.checked(3)
        assert discovery.workers.healthy_engines() == (2, 2)
