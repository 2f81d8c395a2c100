"""Without file descriptors nobody blames an engine, and health checks have a reserve."""

from __future__ import annotations

import asyncio
import errno
import json
import resource
import socket

import pytest

from router import descriptors
from router.config import configure
from router.engines import probe
from router.errors import EngineUnreachable, OutOfFiles
from router.gateway.apis import CHAT
from router.gateway.body_reader import LARGE_BYTES, BodyReader
from router.gateway.client import Client, Receive, Scope, Send
from router.gateway.server import server_config
from tests.support.few_descriptors import few_descriptors
from tests.support.gateway_server import BODIES, error_of, listening, served, until


def test_the_last_descriptors_are_a_reserve() -> None:
    assert descriptors.spare()
    with few_descriptors(descriptors.RESERVE):
        assert descriptors.spare(descriptors.RESERVE - 1)
        assert not descriptors.spare()
    with few_descriptors(0):
        assert not descriptors.spare(0)


def test_a_lack_of_descriptors_is_told_from_an_engine_that_is_away() -> None:
    refused = ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused")
    unknown_name = socket.gaierror(socket.EAI_NONAME, "Name or service not known")
    wrapped = RuntimeError()
    wrapped.__cause__ = OSError(errno.EMFILE, "Too many open files")
    assert descriptors.exhausted(wrapped)
    assert not descriptors.exhausted(refused)
    assert not descriptors.exhausted(unknown_name)
    with few_descriptors(0):
        assert descriptors.exhausted(unknown_name)
        assert not descriptors.exhausted(refused)


def test_a_process_takes_as_many_descriptors_as_it_may() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = descriptors.MOST if hard == resource.RLIM_INFINITY else min(hard, descriptors.MOST)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
        assert descriptors.raise_limit() == descriptors.limit() == wanted
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize("stream", [False, True])
async def test_a_request_for_which_no_descriptor_is_left_is_told_to_come_again_and_no_engine_is_blamed(
    stream: bool, caplog: pytest.LogCaptureFixture
) -> None:
    async with served() as gateway:
        await gateway.client.get("/health")  # the client is connected
        with few_descriptors(descriptors.RESERVE - 4):
            for _ in range(3):
                answer = await gateway.post(stream=stream)
                assert (answer.status_code, error_of(answer)["code"]) == (503, "gateway_overloaded")
                assert answer.headers["retry-after"] == "1"
            async with probe.open_client(configure()) as client:
                await probe.check_health(client, gateway.engines[0].url)  # the reserve is for this
        assert all(gateway.router.healthy(engine) for engine in gateway.router._fleet.ids())
        assert (await gateway.post(stream=stream)).status_code == 200
        await until(lambda: gateway.in_flight() == 0)
        assert not gateway.samples("leafcutter_retries_total") or gateway.value("leafcutter_retries_total") == 0
    told = [message for message in caplog.messages if "no file descriptor left" in message]
    assert len(told) == 1
    assert told[0].startswith("this machine: ")


@pytest.mark.parametrize("busy", [False, True])
async def test_without_descriptors_an_idle_client_makes_room_or_else_the_new_one_is_let_go(
    busy: bool, caplog: pytest.LogCaptureFixture
) -> None:
    release = asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if busy:
            await release.wait()
        await Client(scope, receive, send).reply(200, [], b"here")

    async def ask(url: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Ask over a new connection, which stays open."""
        reader, writer = await asyncio.open_connection("127.0.0.1", int(url.rpartition(":")[2]))
        writer.write(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
        await asyncio.sleep(0.02)
        return reader, writer

    async def beginning(reader: asyncio.StreamReader) -> bytes:
        try:
            return await asyncio.wait_for(reader.read(12), 5)
        except ConnectionError:
            return b""

    async with listening(app, server_config(configure(), app, lifespan="off")) as url:
        with few_descriptors(descriptors.RESERVE + 10):
            clients = [await ask(url) for _ in range(20)]
            if busy:
                assert await beginning(clients[-1][0]) == b""
            else:
                assert await beginning(clients[-1][0]) == b"HTTP/1.1 200"
                await clients[0][0].read()  # its answer, and then the end
        release.set()
        if busy:
            assert await beginning(clients[0][0]) == b"HTTP/1.1 200"
        for _, writer in clients:
            writer.transport.abort()
        await asyncio.sleep(0.05)
        reader, writer = await ask(url)
        assert await beginning(reader) == b"HTTP/1.1 200"
        writer.transport.abort()
        await asyncio.sleep(0.05)
    assert sum("no file descriptor is left for further clients" in message for message in caplog.messages) == 1


async def test_a_check_without_descriptors_is_no_verdict() -> None:
    async with served() as gateway, probe.open_client(configure()) as client:
        with few_descriptors(0), pytest.raises(probe.BadAnswer) as caught:
            await probe.check_health(client, gateway.engines[0].url)
        assert caught.value.ours


async def test_a_large_body_whose_reader_cannot_be_started_is_told_to_come_again() -> None:
    reader = BodyReader()
    body = json.dumps({**BODIES[CHAT], "padding": "x" * LARGE_BYTES}).encode()
    with few_descriptors(0), pytest.raises(OutOfFiles):
        await reader.read(body, route=CHAT, headers={}, request_id="r", block_tokens=64)
    assert not issubclass(OutOfFiles, EngineUnreachable)
