"""The line of each request in the log, and what the gateway says that it took itself."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from router import logs
from router.config import configure
from router.gateway.access_log import fields
from router.types import Ending, Outcome
from tests.router.gateway.test_tenants import TWO, bearer
from tests.support.exchanges import exchange_of
from tests.support.fake_engine import Script
from tests.support.gateway_server import BODIES, CHAT, served, until


def lines(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    return [record for record in caplog.records if record.name == "leafcutter.access"]


def overhead_ms(answer: httpx.Response) -> float:
    return float(answer.headers["x-leafcutter-overhead-ms"])


async def test_every_request_has_one_line_however_it_ended(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    gate = asyncio.Event()
    async with served(Script(), client_keys=TWO, admin_key="admin", log_format="json", policy="lbgr") as gateway:

        async def send(key: str, number: int, **changes: object) -> None:
            headers = {**bearer(key), "x-request-id": str(number)}
            await gateway.client.post(CHAT, json={**BODIES[CHAT], **changes}, headers=headers)

        await send("key-a", 0)
        await send("key-b", 1, stream=True)
        await send("key-a", 2, messages=5)
        await send("key-a", 3, model="another")
        await send("unknown", 4)
        gateway.engines[0].script = Script(gate=gate)
        leaving = asyncio.create_task(send("admin", 5))
        await until(lambda: gateway.engines[0].running == 1)
        leaving.cancel()
        await gateway.ended("cancelled")
    found = [record.fields for record in lines(caplog)]  # type: ignore[attr-defined]
    assert [(each["request_id"], each["key"], each["status"], each["ending"], each["tries"]) for each in found] == [
        ("0", "a", 200, "ok", 1),
        ("1", "b", 200, "ok", 1),
        ("2", "a", 400, "rejected", 0),
        ("3", "a", 404, "rejected", 0),
        ("5", "admin", None, "cancelled", 1),
    ]
    first = found[0]
    assert (first["model"], first["route"], first["engine"]) == ("tiny", CHAT, "engine-0")
    assert (first["prompt_tokens"], first["cached_tokens"], first["output_tokens"]) == (40, 32, 3)
    assert 0 < first["overhead_ms"] < first["total_ms"]
    assert 0 < first["actual_ms"] < first["total_ms"]
    assert first["predicted_ms"] is not None
    assert 0 < found[1]["ttft_ms"] < found[1]["total_ms"]
    assert (found[3]["model"], found[3]["engine"]) == ("another", None)
    assert found[4]["overhead_ms"] is None  # no answer began


async def test_a_try_that_failed_is_counted_as_one(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    async with served(Script(fault="reset"), Script(), policy="round_robin") as gateway:
        assert (await gateway.post()).status_code == 200
    assert " engine=engine-1 tries=2 " in lines(caplog)[0].getMessage()


async def test_text_cannot_be_forged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    model = 'x status=200 key=\n"boss\ud800'
    async with served() as gateway:
        body = json.dumps({**BODIES[CHAT], "model": model}).encode()
        assert (await gateway.client.post(CHAT, content=body)).status_code == 404
    line = lines(caplog)[0].getMessage()
    assert f"model={json.dumps(model)} route=" in line
    assert line.isprintable()


@pytest.mark.parametrize("options", [{"access_log": False}, {"log_level": "warning"}])
async def test_there_may_be_no_lines(options: dict[str, Any], caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING if "log_level" in options else logging.INFO)
    async with served(**options) as gateway:
        assert (await gateway.post()).status_code == 200
    assert not lines(caplog)


def test_a_request_that_reached_no_engine_has_a_line_too() -> None:
    found = fields(exchange_of(0.0, None), Outcome(Ending.REJECTED, 0.25))
    assert (found["ending"], found["total_ms"], found["model"], found["actual_ms"]) == ("rejected", 250.0, None, None)


@pytest.mark.parametrize("stream", [False, True])
async def test_the_time_of_engines_is_not_that_of_the_gateway(stream: bool) -> None:
    gate = asyncio.Event()
    async with served(Script(gate=gate)) as gateway:
        sending = asyncio.create_task(gateway.post(stream=stream))
        await until(lambda: gateway.engines[0].running == 1)
        await asyncio.sleep(0.3)
        gate.set()
        answer = await sending
        assert 0 < overhead_ms(answer) < 250
        assert gateway.value("leafcutter_overhead_seconds_count") == 1
        assert gateway.value("leafcutter_overhead_seconds_sum") == pytest.approx(overhead_ms(answer) / 1000, abs=1e-5)


async def test_nor_is_the_time_of_a_try_that_failed() -> None:
    strike = asyncio.Event()
    async with served(Script(fault="reset", strike=strike), Script(), policy="round_robin") as gateway:
        sending = [asyncio.create_task(gateway.post()) for _ in range(2)]
        await until(lambda: gateway.engines[0].running == 1)
        await asyncio.sleep(0.3)
        strike.set()
        assert all(overhead_ms(answer) < 250 for answer in await asyncio.gather(*sending))


async def test_nor_that_of_a_slow_client_and_of_the_queue() -> None:
    gate = asyncio.Event()
    async with served(Script(gate=gate), max_concurrent_requests=1) as gateway:

        async def slowly() -> AsyncIterator[bytes]:
            body = json.dumps(BODIES[CHAT]).encode()
            yield body[:9]
            await asyncio.sleep(0.3)
            yield body[9:]

        running = asyncio.create_task(gateway.post())
        await until(lambda: gateway.engines[0].running == 1)
        slow = asyncio.create_task(gateway.client.post(CHAT, content=slowly()))
        await until(lambda: gateway.value("leafcutter_queue_length") == 1)
        await asyncio.sleep(0.3)
        gate.set()
        await running
        assert overhead_ms(await slow) < 250


async def test_an_error_tells_what_the_gateway_took() -> None:
    async with served() as gateway:
        assert overhead_ms(await gateway.post(messages=5)) > 0


@pytest.mark.parametrize("process", ["", "edge-1"])
def test_a_line_of_json_has_everything(process: str) -> None:
    formatter = logs.JsonFormatter(process)
    try:
        raise ValueError("odd")
    except ValueError as error:
        record = logging.LogRecord("leafcutter.x", logging.ERROR, "", 0, "%s is out", ("engine-1",), None)
        record.exc_info = (ValueError, error, error.__traceback__)
        record.fields = {"model": "half a \ud800", "tries": 2}
    found = json.loads(formatter.format(record))
    assert found.pop("time") == pytest.approx(record.created, abs=0.001)
    assert found.pop("exception").endswith("ValueError: odd")
    assert found.pop("process", "") == process
    assert found == {
        "level": "error",
        "logger": "leafcutter.x",
        "message": "engine-1 is out",
        "model": "half a ?",
        "tries": 2,
    }


@pytest.mark.parametrize(("form", "expected"), [("json", '"message":"hello"'), ("text", " I edge leafcutter.t: hello")])
def test_the_log_has_the_form_of_the_option(
    form: str, expected: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    root = logging.getLogger()
    monkeypatch.setattr(root, "handlers", [])
    monkeypatch.setattr(root, "level", root.level)
    for chatty in logs.CHATTY:
        monkeypatch.setattr(logging.getLogger(chatty), "level", logging.NOTSET)
    logs.set_up(configure(log_format=form).server, "edge")
    logging.getLogger("leafcutter.t").info("hello")
    assert expected in capsys.readouterr().err
