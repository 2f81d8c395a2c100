from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from router.config import configure
from router.errors import EngineLost, EngineTimeout, EngineUnreachable, RequestError
from router.gateway.headers import end_to_end
from router.gateway.upstream import KEEP_ALIVE_S, Upstream, UpstreamAnswer
from tests.support.fake_engine import FakeEngine, Script
from tests.support.gateway_server import until

PATH = "/v1/completions"
ENGINE_KEEP_ALIVE_S = 5  # uvicorn's default, so vLLM's


def test_only_end_to_end_headers_pass() -> None:
    headers = [(b"connection", b"keep-alive, X-Mine"), (b"x-mine", b"1"), (b"te", b"t"), (b"host", b"h"), (b"a", b"1")]
    headers += [(b"a", b"2"), (b"upgrade", b"u"), (b"transfer-encoding", b"chunked"), (b"content-length", b"3")]
    assert end_to_end(headers) == [(b"a", b"1"), (b"a", b"2")]


def test_idle_connections_go_back_before_the_engine_drops_them() -> None:
    assert KEEP_ALIVE_S < ENGINE_KEEP_ALIVE_S


@asynccontextmanager
async def running(**options: float) -> AsyncIterator[Upstream]:
    upstream = Upstream(configure(**options))
    async with upstream.running():
        yield upstream


@asynccontextmanager
async def posted(upstream: Upstream, engine: FakeEngine, body: bytes = b"{}") -> AsyncIterator[UpstreamAnswer]:
    headers = [(b"content-type", b"application/json")]
    answer = await upstream.send(engine.url, PATH, b"", headers, "r", [body])
    try:
        yield answer
    finally:
        answer.close()


async def test_a_connection_is_used_again_after_a_whole_answer_only() -> None:
    async with FakeEngine().serving() as engine, running() as upstream:
        for _ in range(3):
            async with posted(upstream, engine) as answer:
                await answer.read_all()
        assert len({request.peer for request in engine.requests}) == 1
        engine.script = Script(fault="hang", after=1)
        for _ in range(2):
            async with posted(upstream, engine, b'{"stream": true}') as answer:
                await answer.read()
        assert len({request.peer for request in engine.requests}) == 2


async def test_closing_an_unfinished_answer_stops_the_engine() -> None:
    script = Script(fault="hang", after=1)
    async with FakeEngine(script).serving() as engine, running() as upstream:
        async with posted(upstream, engine, b'{"stream": true}') as answer:
            assert await answer.read()
        await until(lambda: engine.cancelled == 1)


async def test_no_cookie_of_one_client_reaches_another() -> None:
    script = Script(headers={"set-cookie": "secret=1"})
    async with FakeEngine(script).serving() as engine, running() as upstream:
        for _ in range(2):
            async with posted(upstream, engine) as answer:
                assert (b"set-cookie", b"secret=1") in answer.headers
        assert "cookie" not in engine.requests[1].headers


async def test_repeated_and_non_ascii_headers_pass() -> None:
    async with FakeEngine().serving() as engine, running() as upstream:
        headers = [(b"x-name", "zoë".encode()), (b"x-odd", b"\xff")]
        (await upstream.send(engine.url, PATH, b"a=1", headers, "r", [b"{}"])).close()
        assert engine.requests[0].headers["x-name"] == "zoë"
        assert engine.requests[0].path.endswith("?a=1")
        assert not {"user-agent", "content-type", "accept"} & set(engine.requests[0].headers)


@pytest.mark.parametrize(
    ("script", "options", "error"),
    [
        (Script(fault="cut"), {}, EngineLost),
        (Script(fault="reset"), {}, EngineLost),
        (Script(fault="cut", after=1), {}, EngineLost),
        (Script(fault="hang"), {"first_byte_timeout_secs": 0.02}, EngineTimeout),
        (Script(fault="hang", after=0), {"first_byte_timeout_secs": 0.02}, EngineTimeout),
        (Script(fault="hang", after=1), {"idle_timeout_secs": 0.02}, EngineTimeout),
    ],
)
async def test_failures_are_told_apart(script: Script, options: dict[str, float], error: type[RequestError]) -> None:
    async with FakeEngine(script).serving() as engine, running(**options) as upstream:
        with pytest.raises(error) as caught:
            async with posted(upstream, engine, b'{"stream": true}') as answer:
                await answer.read_all()
        assert type(caught.value) is error
        assert engine.url not in caught.value.message


async def test_a_refused_connection_is_unreachable() -> None:
    engine = FakeEngine()
    await engine.start()
    await engine.stop()
    async with running() as upstream:
        with pytest.raises(EngineUnreachable):
            async with posted(upstream, engine):
                pass


async def test_a_connection_never_accepted_is_unreachable() -> None:
    with socket.socket() as full, socket.socket() as first:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        first.connect(full.getsockname())  # fills the queue: whoever comes next waits
        engine = FakeEngine()
        engine.url = f"http://127.0.0.1:{full.getsockname()[1]}"
        async with running(connect_timeout_secs=0.05) as upstream:
            with pytest.raises(EngineUnreachable):
                async with posted(upstream, engine), posted(upstream, engine):
                    pass
