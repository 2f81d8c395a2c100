from __future__ import annotations

import asyncio
import json
import multiprocessing
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from router.errors import ConfigError
from router.gateway.exchange import Exchange
from router.gateway.usage_log import UsageLog, summarize
from router.types import Ending, Outcome
from tests.router.gateway.test_tenants import TWO, bearer
from tests.support.fake_engine import Script
from tests.support.gateway_server import BODIES, CHAT, served, until


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


async def test_every_request_has_a_line(tmp_path: Path) -> None:
    path, gate = tmp_path / "usage.jsonl", asyncio.Event()
    async with served(Script(), client_keys=TWO, admin_key="admin", usage_log=str(path)) as gateway:

        async def send(key: str, **fields: Any) -> None:
            await gateway.client.post(
                CHAT, json={**BODIES[CHAT], **fields}, headers={**bearer(key), "x-request-id": key}
            )

        await send("key-a")
        await send("key-b", stream=True)
        await send("key-a", messages=5)
        await send("unknown")
        gateway.engines[0].script = Script(gate=gate)
        leaving = asyncio.create_task(send("admin", stream=True))
        await until(lambda: gateway.engines[0].running == 1)
        leaving.cancel()
        await until(lambda: gateway.endings().get("cancelled") == 1)
    found = lines(path)
    assert [(each["key"], each["ending"], each["request_id"]) for each in found] == [
        ("a", "ok", "key-a"),
        ("b", "ok", "key-b"),
        ("a", "rejected", "key-a"),
        ("admin", "cancelled", "admin"),
    ]
    assert found[0] == {
        "time": found[0]["time"],
        "key": "a",
        "request_id": "key-a",
        "model": "tiny",
        "route": CHAT,
        "ending": "ok",
        "engine": "engine-0",
        "prompt_tokens": 40,
        "cached_tokens": 32,
        "output_tokens": 3,
        "estimated": False,
    }
    assert (found[2]["engine"], found[2]["model"], found[2]["prompt_tokens"]) == (None, None, 0)
    assert found[3]["estimated"]
    assert found[3]["prompt_tokens"] > 0
    assert "capital" not in path.read_text()
    assert path.stat().st_mode & 0o007 == 0


async def test_without_keys_the_key_is_null(tmp_path: Path) -> None:
    path = tmp_path / "usage.jsonl"
    async with served(usage_log=str(path)) as gateway:
        await gateway.post()
    assert [each["key"] for each in lines(path)] == [None]


def exchange(number: int = 0) -> Exchange:
    key = SimpleNamespace(name="a")
    fields = {"client": SimpleNamespace(key=key), "request_id": str(number), "placement": None, "request": None}
    return cast(Exchange, SimpleNamespace(**fields, route=CHAT))


def fill(path: str, first: int, count: int) -> None:
    log = UsageLog(path, max_bytes=4096, files=900, wall_clock=lambda: 0.0)
    with log.running():
        for number in range(first, first + count):
            log.ended(exchange(number), Outcome(Ending.OK, 0.0))
    assert log.lost == 0


def test_several_processes_turn_one_log_over_and_lose_nothing(tmp_path: Path) -> None:
    path = tmp_path / "usage.jsonl"
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=fill, args=(str(path), 1000 * n, 300)) for n in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0
    files = [file for file in tmp_path.iterdir() if not file.name.endswith(".lock")]
    assert len(files) > 20
    assert all(file.stat().st_size < 4096 + 1024 for file in files)
    numbers = sorted(int(line["request_id"]) for file in files for line in lines(file))
    assert numbers == sorted(1000 * n + i for n in range(3) for i in range(300))


def test_of_older_files_so_many_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "usage.jsonl"
    log = UsageLog(str(path), max_bytes=4096, files=2, wall_clock=lambda: 0.0)
    with log.running():
        for number in range(100):
            log.ended(exchange(number), Outcome(Ending.OK, 0.0))
    kept = {file.name for file in tmp_path.iterdir()} - {f"{path.name}.lock"}
    assert kept == {path.name, f"{path.name}.1", f"{path.name}.2"}
    assert lines(path)[-1]["request_id"] == "99"


def test_a_log_that_was_moved_away_goes_on(tmp_path: Path) -> None:
    path, moved = tmp_path / "usage.jsonl", tmp_path / "billed"
    log = UsageLog(str(path), max_bytes=4096, files=2, wall_clock=lambda: 0.0)
    log._write(b"first\n")
    path.rename(moved)
    log._write(b"second\n")
    assert (moved.read_text(), path.read_text()) == ("first\n", "second\n")


def test_lines_that_cannot_be_written_are_counted_and_said_once(
    caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    path = tmp_path / "usage.jsonl"
    log = UsageLog(str(path), max_bytes=1 << 20, files=2, wall_clock=lambda: 0.0)
    path.unlink()
    path.mkdir()  # nothing can be written there
    for _ in range(2):
        log.ended(exchange(), Outcome(Ending.OK, 0.0))
    log._queue.put(None)
    log._work()
    assert log.lost == 2
    assert caplog.text.count("are lost") == 1


@pytest.mark.parametrize("path", ["/dev/null", "/no/such/folder/usage", "."])
def test_what_is_no_file_is_refused(path: str) -> None:
    with pytest.raises(ConfigError, match="usage_log"):
        UsageLog(path, max_bytes=4096, files=2, wall_clock=lambda: 0.0)


def test_a_pipe_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ConfigError, match="usage_log"):
        UsageLog(str(tmp_path / "pipe"), max_bytes=4096, files=2, wall_clock=lambda: 0.0)


def test_a_request_that_never_reached_an_engine_took_nothing() -> None:
    assert summarize(exchange(), Outcome(Ending.CANCELLED, 0.0), 1.0)[7:] == (0, None, 0, False)
