"""A small run of `chaos` with real processes, its engines' faults one by one, and what its checks say."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from benchmarks.live import chaos
from benchmarks.live.chaos import measure, parse, table, wrong
from benchmarks.live.chaos_load import CHUNKS, Load, judge
from benchmarks.live.chaos_scenarios import HOST, SCENARIOS, Engine
from benchmarks.live.gateway_process import free_port
from benchmarks.live.numbered_load import stream_of

HEAD = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"


async def play(monkeypatch: pytest.MonkeyPatch, *args: str) -> list[dict[str, Any]]:
    """Play scenarios before a gateway that is not warm, so that all descriptors of its requests count."""
    monkeypatch.setattr(chaos, "WARM_UP", 0)
    monkeypatch.setattr(chaos, "IDLE_S", 0.0)
    rows: list[dict[str, Any]] = (await measure(parse(args)))["rows"]
    return rows


async def test_nothing_is_lost_while_engines_die_and_clients_leave(monkeypatch: pytest.MonkeyPatch) -> None:
    (row,) = await play(monkeypatch, "--only", "storm", "--storm", "300")
    assert wrong([row]) == []
    assert row["requests"] == 300
    assert row["well"] + row["broken"] + row["left"] == 300
    assert row["kills"] > 0
    assert row["left"] > 0
    assert f"| storm | 300 | {row['well']} | {row['left']} |" in table([row])


async def test_nothing_is_lost_with_several_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chaos, "descriptors_back", unchanged)  # they open files of metrics with their first requests
    (row,) = await play(monkeypatch, "--only", "reset-before-head", "--processes", "2", "--requests", "60")
    assert (row["well"], row["lost"], row["gauges"]) == (60, {}, 0)


async def unchanged(_: int, before: int, __: float) -> int:
    return before


FAULTS = {
    "status-429": b"HTTP/1.1 429 ",
    "status-500": b"HTTP/1.1 500 ",
    "status-502": b"HTTP/1.1 502 ",
    "status-503": b"HTTP/1.1 503 ",
    "reset-before-head": b"",
    "reset-after-head": HEAD[:15],
    "reset-middle": b'"content":"1 ',
    "reset-before-end": b'"content":"5 ',
    "reset-after-end": b"[DONE]",
    "wedged": b"",
    "garbage": b"SSH-2.0",
    "oversized-head": b"y" * 10_000,
    "endless": b'"content":"0 ',
    "dripping": b"H",
}


async def test_engines_fail_as_they_are_told() -> None:
    async with Engine(free_port()) as engine:
        request, chunks = Load(engine.url).request(0)
        assert chunks == CHUNKS
        for fault, seen in FAULTS.items():
            await engine.fail(fault)
            answer = await raw(engine, request)
            assert seen in answer, fault
            assert (judge(answer, chunks) == "well") is (fault == "reset-after-end"), fault
            assert seen or not answer, fault
        await engine.heal()
        assert judge(await raw(engine, request), chunks) == "well"
        await engine.kill()
        with pytest.raises(ConnectionRefusedError):
            await raw(engine, request)
        await engine.heal()
        assert judge(await raw(engine, request), chunks) == "well"


async def raw(engine: Engine, request: bytes) -> bytes:
    """What comes of an answer until the connection ends or nothing more comes."""
    reader, writer = await asyncio.open_connection(HOST, int(engine.url.rpartition(":")[2]))
    writer.write(request)
    received = b""
    try:
        async with asyncio.timeout(0.25):
            while part := await reader.read(1 << 20):
                received += part
    except (TimeoutError, ConnectionResetError):
        pass
    finally:
        writer.close()
    return received


def test_the_faults_are_all_played() -> None:
    assert set(SCENARIOS) >= set(FAULTS)


def answer(events: bytes) -> bytes:
    return HEAD + b"%x\r\n%b\r\n0\r\n\r\n" % (len(events), events)


WHOLE = stream_of(4, usage=False)


@pytest.mark.parametrize(
    ("came", "chunks", "found"),
    [
        (answer(WHOLE), 4, "well"),
        (b"HTTP/1.1 200 OK\r\n\r\nParis is the capital of France.", 0, "well"),
        (answer(WHOLE[:100] + b'\n\ndata: {"error": {"message": "x"}}\n\n'), 4, "broken"),
        (answer(WHOLE[:200]), 4, "altered"),
        (answer(WHOLE), 5, "altered"),
        (b"HTTP/1.1 200 OK\r\n\r\nLondon", 0, "altered"),
        (b"HTTP/1.1 502 Bad Gateway\r\n\r\n", 4, "status 502"),
    ],
)
def test_answers_are_judged(came: bytes, chunks: int, found: str) -> None:
    assert judge(came, chunks) == found


RIGHT = {"scenario": "wedged", "processes": 1, "requests": 1000, "well": 999, "left": 0, "broken": 0}
RIGHT |= {"lost": {"late": 1}, "gauges": 0, "descriptors_before": 22, "descriptors_after": 22}


def test_a_scenario_is_one_line_of_the_table() -> None:
    line = "| wedged | 1,000 / 2,000 | 999 / 999 | 0 / 0 | 0 / 0 | 1 / 1 | 0 / 0 | 22, 22 / 22, 22 |"
    assert table([RIGHT, {**RIGHT, "processes": 2, "requests": 2000}]).splitlines()[2:] == [line]


def test_what_should_not_be_is_told() -> None:
    right = {**RIGHT, "requests": 100}
    assert wrong([right, {**right, "scenario": "killed", "broken": 3}]) == []
    faults: list[dict[str, Any]] = [
        {"lost": {"late": 1, "altered": 1}},
        {"broken": 1},
        {"gauges": 1},
        {"descriptors_after": 23},
        {"staying": 2},
    ]
    for fault in faults:
        assert len(wrong([{**right, **fault}])) == 1, fault
