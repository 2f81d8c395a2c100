"""Engines that fail and clients that leave, at every moment; after each, nothing is left of the request."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from router.core.router import Router
from router.types import Decision, Ending, Outcome
from tests.support.fake_engine import REFUSAL, Script
from tests.support.gateway_server import BODIES, CHAT, COMPLETIONS, Served, error_event, error_of, events, served, until

# --- engines that fail -----------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [False, True])
async def test_a_refused_connection_goes_elsewhere_and_marks_the_engine(stream: bool) -> None:
    async with served(Script(), Script()) as gateway:
        await gateway.engines[0].stop()
        for _ in range(4):
            assert (await gateway.post(stream=stream)).status_code == 200
        await gateway.ended("ok", 4)
        assert [gateway.router.healthy(e) for e in gateway.router._fleet.ids()] == [False, True]
        assert gateway.value("leafcutter_retries_total", reason="connect") <= 1


@pytest.mark.parametrize("stream", [False, True])
async def test_a_refused_connection_and_nobody_else(stream: bool) -> None:
    async with served() as gateway:
        await gateway.engines[0].stop()
        response = await gateway.post(stream=stream)
        assert (response.status_code, error_of(response)["code"]) == (502, "engine_unreachable")
        await gateway.ended("engine_lost")


@pytest.mark.parametrize("fault", ["cut", "reset"])
@pytest.mark.parametrize(("stream", "after"), [(False, None), (True, None), (True, 0)])
async def test_an_engine_that_dies_before_its_first_byte_loses_no_request(
    fault: str, stream: bool, after: int | None
) -> None:
    dying, well = Script(fault=fault, after=after), Script()
    async with served(dying, well) as gateway:
        for _ in range(4):
            response = await gateway.post(stream=stream)
            assert response.status_code == 200
            assert response.headers["x-leafcutter-engine"] == "engine-1"
            assert "Paris" in response.text
        await gateway.ended("ok", 4)
        assert gateway.value("leafcutter_retries_total", reason="reset") == len(gateway.engines[0].requests) > 0


async def test_a_request_that_kills_engines_kills_two_at_most() -> None:
    async with served(*[Script(fault="cut")] * 4) as gateway:
        response = await gateway.post()
        assert (response.status_code, error_of(response)["code"]) == (502, "engine_lost")
        assert sum(len(engine.requests) for engine in gateway.engines) == 2
        await gateway.ended("engine_lost")


@pytest.mark.parametrize("stream", [False, True])
async def test_a_busy_engines_request_goes_elsewhere(stream: bool) -> None:
    async with served(Script(status=503, error=REFUSAL), Script()) as gateway:
        for _ in range(4):
            assert (await gateway.post(stream=stream)).headers["x-leafcutter-engine"] == "engine-1"
        await gateway.ended("ok", 4)
        assert gateway.value("leafcutter_retries_total", reason="busy") == len(gateway.engines[0].requests) > 0
        assert all(gateway.router.healthy(e) for e in gateway.router._fleet.ids())


@pytest.mark.parametrize("retries", [0, 1, 5])
async def test_all_engines_busy_gives_the_last_ones_words(retries: int) -> None:
    busy = Script(status=503, error=REFUSAL, headers={"retry-after": "7"})
    async with served(busy, busy, busy, retry_max_retries=retries) as gateway:
        response = await gateway.post()
        assert (response.status_code, response.headers["retry-after"]) == (503, "7")
        assert error_of(response) == REFUSAL
        assert [len(engine.requests) for engine in gateway.engines].count(1) == min(retries + 1, 3)
        await gateway.ended("engine_failed")


@pytest.mark.parametrize("fault", ["cut", "reset"])
@pytest.mark.parametrize("asked", [False, True])
@pytest.mark.parametrize("route", [CHAT, COMPLETIONS])
async def test_a_stream_that_breaks_ends_with_an_error_event(fault: str, asked: bool, route: str) -> None:
    strike = asyncio.Event()
    script = Script(fault=fault, after=2, strike=strike)
    body = {**BODIES[route], "stream": True, "stream_options": {"include_usage": asked}}
    async with served(script, script) as gateway, gateway.client.stream("POST", route, json=body) as response:
        content = b""
        async for chunk in response.aiter_bytes():
            content += chunk
            if content.count(b"\n\n") == 2:
                strike.set()
        assert len(events(content)) == 3
        assert error_event(content)["code"] == "engine_lost"
        await gateway.ended("engine_lost")
        assert sum(len(engine.requests) for engine in gateway.engines) == 1


async def test_a_stream_without_its_end_mark_is_broken() -> None:
    async with served(Script(done=False)) as gateway:
        response = await gateway.post(stream=True)
        assert error_event(response.content)["code"] == "engine_lost"
        await gateway.ended("engine_lost")


LIMITS = [
    ({"first_byte_timeout_secs": 0.3}, None),
    ({"first_byte_timeout_secs": 0.3}, 0),
    ({"idle_timeout_secs": 0.3}, 2),
    ({"request_timeout_secs": 0.3}, None),
    ({"request_timeout_secs": 0.3}, 2),
]


@pytest.mark.parametrize(("limit", "after"), LIMITS)
async def test_a_silent_engine_is_given_up(limit: dict[str, Any], after: int | None) -> None:
    async with served(Script(fault="hang", after=after), Script(fault="hang", after=after), **limit) as gateway:
        response = await gateway.post(stream=True)
        if after == 2:
            error = error_event(response.content)
        else:
            assert response.status_code == 504
            error = error_of(response)
        assert error["code"] == "engine_timeout"
        await gateway.ended("timeout")
        await until(lambda: sum(engine.cancelled for engine in gateway.engines) == 1)
        assert sum(len(engine.requests) for engine in gateway.engines) == 1


async def test_a_silent_engine_is_given_up_unstreamed() -> None:
    async with served(Script(fault="hang"), first_byte_timeout_secs=0.3) as gateway:
        response = await gateway.post()
        assert (response.status_code, error_of(response)["code"]) == (504, "engine_timeout")
        await gateway.ended("timeout")
        await until(lambda: gateway.engines[0].cancelled == 1)


@pytest.mark.parametrize("stream", [False, True])
async def test_more_cached_tokens_than_prompt_reach_neither_metrics_nor_log_nor_trace(
    stream: bool, tmp_path: Path
) -> None:
    path = tmp_path / "trace.jsonl"
    async with served(Script(prompt_tokens=40, cached_tokens=41), record=str(path)) as gateway:
        await gateway.post(stream=stream)
        await gateway.ended("ok")
        assert gateway.value("leafcutter_prompt_tokens_total") == 40
        assert gateway.samples("leafcutter_cached_tokens_total") == []
        (entry,) = gateway.router.newest_decisions(1)
        assert entry.result is not None
        assert entry.result.cached_tokens is None
    (line,) = map(json.loads, path.read_text().splitlines())
    assert line["cached_tokens"] is None


# --- engines that talk nonsense --------------------------------------------------------------------

BODY = b'{"choices": [{"index": 0, "message": {"content": "x"}}]}'
LENGTH = b"content-length: %d\r\n" % len(BODY)
OK = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n"
EVENTS = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
NONSENSE = {
    "nothing": b"",
    "another protocol": b"SSH-2.0-OpenSSH_9.6\r\n",
    "status 0": b"HTTP/1.1 000 No\r\n" + LENGTH + b"\r\n" + BODY,
    "status 99": b"HTTP/1.1 099 No\r\n" + LENGTH + b"\r\n" + BODY,
    "status 600": b"HTTP/1.1 600 No\r\n" + LENGTH + b"\r\n" + BODY,
    "status 999": b"HTTP/1.1 999 No\r\n" + LENGTH + b"\r\n" + BODY,
    "status of four digits": b"HTTP/1.1 2000 No\r\n" + LENGTH + b"\r\n" + BODY,
    "another protocol by consent": b"HTTP/1.1 101 Switching Protocols\r\nupgrade: h2c\r\nconnection: upgrade\r\n\r\n",
    "101 alone": b"HTTP/1.1 101 Switching Protocols\r\n\r\n" + OK + LENGTH + b"\r\n" + BODY,
    "interim answers without end": b"HTTP/1.1 100 Continue\r\n\r\n" * 100_000,
    "another address": b"HTTP/1.1 307 Elsewhere\r\nlocation: http://127.0.0.1:1/\r\ncontent-length: 0\r\n\r\n",
    "not modified": b"HTTP/1.1 304 Not Modified\r\n\r\n",
    "two lengths": OK + LENGTH + b"content-length: 1\r\n\r\n" + BODY,
    "a length and chunks": OK + LENGTH + b"transfer-encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n\r\n",
    "a negative length": OK + b"content-length: -1\r\n\r\n" + BODY,
    "a length beyond all": OK + b"content-length: 1" + b"0" * 400 + b"\r\n\r\n" + BODY,
    "a length that is not reached": OK + b"content-length: 1000\r\n\r\n" + BODY,
    "a chunk of no size": OK + b"transfer-encoding: chunked\r\n\r\nzz\r\nx\r\n",
    "a chunk beyond all": OK + b"transfer-encoding: chunked\r\n\r\n" + b"f" * 40 + b"\r\nx\r\n",
    "a chunk cut short": OK + b"transfer-encoding: chunked\r\n\r\n5\r\nda",
    "a header without end": OK + b"x: " + b"y" * 3_000_000,
    "headers without end": OK + b"x: y\r\n" * 500_000,
    "a head too large": OK + b"x: " + b"y" * 100_000 + b"\r\n" + LENGTH + b"\r\n" + BODY,
    "an odd name": OK + b"x\x00y: z\r\n" + LENGTH + b"\r\n" + BODY,
    "a name with a space": OK + b"x y: z\r\n" + LENGTH + b"\r\n" + BODY,
    "an odd value": OK + b"x: y\x00z\r\n" + LENGTH + b"\r\n" + BODY,
    "a compressed answer": OK + b"content-encoding: gzip\r\n" + LENGTH + b"\r\n" + BODY,
}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("name", NONSENSE)
async def test_nonsense_from_an_engine_is_a_clean_error_and_one_line_in_the_log(
    name: str, stream: bool, caplog: pytest.LogCaptureFixture
) -> None:
    async with served(Script(raw=NONSENSE[name])) as gateway:
        response = await gateway.client.post(
            CHAT, json={**BODIES[CHAT], "stream": stream}, headers={"x-request-id": "the-request"}
        )
        assert response.status_code == 502
        assert error_of(response)["type"] == "server_error"
        assert "location" not in response.headers
        await gateway.ended("engine_lost")
        told = [message for message in caplog.messages if message.startswith("engine-0: ")]
        assert len(told) == 1
        assert told[0].endswith("(request the-request)")


@pytest.mark.parametrize("name", NONSENSE)
async def test_nonsense_goes_elsewhere_where_there_is_another_engine(name: str) -> None:
    async with served(Script(raw=NONSENSE[name]), Script()) as gateway:
        for _ in range(2):
            assert (await gateway.post()).status_code == 200
        await gateway.ended("ok", 2)


@pytest.mark.parametrize(
    ("raw", "seen"),
    [
        (OK + LENGTH + b"\r\n" + BODY + b"more than that", "x"),
        (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Hints\r\nlink: x\r\n\r\n" + OK + LENGTH + b"\r\n" + BODY, "x"),
        (b"HTTP/1.0 200 OK\r\n\r\n" + BODY, "x"),
        (OK + b"connection: x-secret\r\nx-secret: 1\r\n" + LENGTH + b"\r\n" + BODY, "x"),
        (OK + b"content-encoding: identity\r\n" + LENGTH + b"\r\n" + BODY, "x"),
        (OK + b"x: \xff\xfe\r\n" + LENGTH + b"\r\n" + BODY, "x"),
    ],
)
async def test_an_answer_that_is_only_odd_passes(raw: bytes, seen: str) -> None:
    async with served(Script(raw=raw)) as gateway:
        for _ in range(2):
            response = await gateway.post()
            assert (response.status_code, response.json()["choices"][0]["message"]["content"]) == (200, seen)
            assert "x-secret" not in response.headers
        await gateway.ended("ok", 2)


@pytest.mark.parametrize(
    "usage",
    [
        b'{"prompt_tokens": 1%s, "completion_tokens": 1%s}' % (b"0" * 400, b"0" * 400),
        b'{"prompt_tokens": 1%s}' % (b"0" * 5000),
        b'{"prompt_tokens": 1e400, "completion_tokens": NaN, "prompt_tokens_details": {"cached_tokens": -1}}',
        b'{"prompt_tokens": -5, "completion_tokens": true, "prompt_tokens_details": []}',
        b'{"prompt_tokens": 40, "prompt_tokens_details": {"cached_tokens": 1%s}}' % (b"0" * 30),
        b"[[[]]]",
        b'"\\ud800"',
    ],
)
@pytest.mark.parametrize("stream", [False, True])
async def test_impossible_counts_pass_to_the_client_and_teach_nothing(usage: bytes, stream: bool) -> None:
    answer = b'{"choices": [{"index": 0, "message": {"content": "x"}}], "usage": %s}' % usage
    raw = OK + b"content-length: %d\r\n\r\n" % len(answer) + answer
    if stream:
        first = b'data: {"choices": [{"index": 0, "delta": {"content": "x"}}]}\n\n'
        said = first + b"data: " + answer + b"\n\ndata: [DONE]\n\n"
        raw = EVENTS + b"%x\r\n" % len(said) + said + b"\r\n0\r\n\r\n"
    async with served(Script(raw=raw), policy="lbgr") as gateway:
        for _ in range(3):
            response = await gateway.post(stream=stream)
            assert response.status_code == 200
        await gateway.ended("ok", 3)
        learned = json.dumps(gateway.router.learned.dump(1.0), allow_nan=False)  # so every number is finite
        assert "e+" not in learned
        assert (await gateway.client.get("/decisions")).status_code == 200


# --- faults of the gateway itself ------------------------------------------------------------------


class RouteFails(Router):
    def route(self, *_: Any, **__: Any) -> Decision:
        raise ZeroDivisionError


class FirstTokenFails(Router):
    def first_token(self, decision: Decision, now: float) -> None:
        raise ZeroDivisionError


class CompleteFails(Router):
    def complete(self, decision: Decision, outcome: Outcome) -> None:
        super().complete(decision, outcome)
        raise ZeroDivisionError


@pytest.mark.parametrize("stream", [False, True])
async def test_a_fault_of_the_gateway_is_neither_the_clients_nor_the_engines(
    stream: bool, caplog: pytest.LogCaptureFixture
) -> None:
    async with served(router_type=RouteFails) as gateway:
        response = await gateway.post(stream=stream)
        assert (response.status_code, error_of(response)["code"]) == (500, "gateway_fault")
        await gateway.ended("gateway_fault")
        assert "ZeroDivisionError" in caplog.text


async def test_a_fault_in_a_stream_ends_the_engines_work_and_is_told() -> None:
    async with served(Script(fault="hang", after=2), router_type=FirstTokenFails) as gateway:
        response = await gateway.post(stream=True)
        assert error_of(response)["code"] == "gateway_fault"
        await gateway.ended("gateway_fault")
        assert gateway.engines[0].cancelled == 1
        (entry,) = gateway.router.newest_decisions(1)
        assert entry.result is not None
        assert entry.result.ending is Ending.GATEWAY_FAULT


@pytest.mark.parametrize("stream", [False, True])
async def test_a_fault_behind_a_whole_answer_leaves_the_answer_whole(stream: bool) -> None:
    async with served(router_type=CompleteFails) as gateway:
        response = await gateway.post(stream=stream)
        assert response.status_code == 200
        assert "Paris" in response.text
        assert "gateway_fault" not in response.text
        await gateway.ended("gateway_fault")


# --- clients that leave ----------------------------------------------------------------------------


async def leave(gateway: Served, *, stream: bool, after_bytes: bool, content: str = "Hello") -> None:
    """Sends a chat request over a bare connection and drops it."""
    body = json.dumps({**BODIES[CHAT], "messages": [{"role": "user", "content": content}], "stream": stream}).encode()
    host, port = gateway.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(f"POST {CHAT} HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n\r\n".encode() + body)
    await gateway.engines[0].arrived.wait()
    if after_bytes:
        await reader.readuntil(b"data: ")
    writer.close()
    await writer.wait_closed()


@pytest.mark.parametrize("content", ["Hello", "long " * 100_000])
@pytest.mark.parametrize(("stream", "after"), [(False, None), (True, None), (True, 0)])
async def test_a_client_that_leaves_before_the_first_byte(stream: bool, after: int | None, content: str) -> None:
    async with served(Script(fault="hang", after=after), Script()) as gateway:
        await leave(gateway, stream=stream, after_bytes=False, content=content)
        await gateway.ended("cancelled")
        await until(lambda: gateway.engines[0].cancelled == 1)
        assert not gateway.engines[1].requests


async def test_a_client_that_leaves_in_the_middle() -> None:
    async with served(Script(fault="hang", after=2)) as gateway:
        await leave(gateway, stream=True, after_bytes=True)
        await gateway.ended("cancelled")
        await until(lambda: gateway.engines[0].cancelled == 1)


async def test_who_left_is_recorded_with_what_had_come(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    async with served(Script(fault="hang", after=3), record=str(path)) as gateway:  # behind the role and two tokens
        body = {**BODIES[CHAT], "max_tokens": 50, "stream": True}
        async with gateway.client.stream("POST", CHAT, json=body) as response:
            async for line in response.aiter_lines():
                if "France" in line:
                    break
        await gateway.ended("cancelled")
        assert gateway.value("leafcutter_output_tokens_total") == 2
    (line,) = map(json.loads, path.read_text().splitlines())
    assert (line["ending"], line["output_length"], line["max_tokens"]) == ("cancelled", 2, 50)
    assert 0 < line["ttft_ms"] <= line["latency_ms"]


async def test_a_stream_that_broke_is_recorded(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    async with served(Script(fault="cut", after=1), record=str(path)) as gateway:
        await gateway.post(COMPLETIONS, stream=True)
        await gateway.ended("engine_lost")
    (line,) = map(json.loads, path.read_text().splitlines())
    assert (line["ending"], line["output_length"]) == ("engine_lost", 1)


async def test_a_client_that_leaves_inside_its_own_body() -> None:
    async with served() as gateway:
        host, port = gateway.url.removeprefix("http://").split(":")
        _, writer = await asyncio.open_connection(host, int(port))
        writer.write(f"POST {CHAT} HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n{{".encode())
        await writer.drain()
        writer.close()
        await gateway.ended("cancelled")
        assert not gateway.engines[0].requests


async def test_a_client_that_reads_nothing_is_cut_off_in_the_end() -> None:
    async with served(Script(tokens=("x" * 100_000,) * 300), request_timeout_secs=0.5) as gateway:
        body = json.dumps({**BODIES[CHAT], "stream": True}).encode()
        host, port = gateway.url.removeprefix("http://").split(":")
        _, writer = await asyncio.open_connection(host, int(port), limit=1024)
        writer.write(f"POST {CHAT} HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n\r\n".encode() + body)
        await gateway.ended("timeout")
        writer.transport.abort()
