"""Clients with bad manners, or bad intentions, over real sockets."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace

import pytest

from router.config import configure
from router.gateway.client import Message, Receive, Scope, Send
from router.gateway.client_connection import Connections
from router.gateway.client_limits import Limits
from router.gateway.handler import BODIES as LARGEST_BODIES
from router.gateway.server import server_config
from tests.support.fake_engine import Script
from tests.support.gateway_server import BODIES, CHAT, listening, served, until

LIMITS = Limits(connections=100)
BODY = json.dumps(BODIES[CHAT]).encode()
STREAM = json.dumps({**BODIES[CHAT], "stream": True}).encode()


def post(body: bytes = BODY, *headers: str, version: str = "1.1", target: str = CHAT) -> bytes:
    lines = [f"POST {target} HTTP/{version}", "host: x", f"content-length: {len(body)}", *headers]
    return "\r\n".join((*lines, "", "")).encode() + body


class Peer:
    """A client that sends whatever it likes."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    def send(self, *parts: bytes) -> None:
        for part in parts:
            self.writer.write(part)

    async def answer(self) -> tuple[int, dict[str, str], bytes]:
        """The next answer: its status, headers and body."""
        async with asyncio.timeout(10):
            head = (await self.reader.readuntil(b"\r\n\r\n")).decode()
            first, *lines = head.strip().split("\r\n")
            headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
            if "content-length" in headers:
                return int(first.split()[1]), headers, await self.reader.readexactly(int(headers["content-length"]))
            if headers.get("transfer-encoding") != "chunked":
                return int(first.split()[1]), headers, await self.reader.read()
            body = b""
            while size := int((await self.reader.readline()).strip(), 16):
                body += await self.reader.readexactly(size)
                await self.reader.readexactly(2)
            await self.reader.readexactly(2)
            return int(first.split()[1]), headers, body

    async def refused(self) -> tuple[int, str]:
        """The status and the code of an error, after which the connection has ended."""
        status, headers, body = await self.answer()
        assert headers["connection"] == "close"
        assert headers["content-type"] == "application/json"
        assert await self.ended()
        code: str = json.loads(body)["error"]["code"]
        return status, code

    async def ended(self) -> bool:
        async with asyncio.timeout(10):
            return await self.reader.read() == b""


@asynccontextmanager
async def peer(url: str) -> AsyncIterator[Peer]:
    host, port = url.removeprefix("http://").split(":")
    made = Peer(*await asyncio.open_connection(host, int(port)))
    try:
        yield made
    finally:
        made.writer.close()


class Door:
    """A server that answers each request with what it was sent, behind ClientConnection."""

    def __init__(self, limits: Limits = LIMITS) -> None:
        self.refusals: list[str] = []
        self.connections = Connections(limits, self.refusals.append)
        self.scopes: list[Scope] = []
        self.gate: asyncio.Event | None = None
        """Each answer waits for it."""
        self.left = 0

    @asynccontextmanager
    async def open(self) -> AsyncIterator[str]:
        config = server_config(configure(), self, http=self.connections, lifespan="off")
        async with listening(self, config) as url:
            yield url

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.scopes.append(scope)
        body, more = b"", True
        while more:
            message: Message = await receive()
            if message["type"] == "http.disconnect":
                self.left += 1
                return
            body, more = body + message["body"], message["more_body"]
        if self.gate is not None:
            await self.gate.wait()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": body or scope["path"].encode()})


# --- limits -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("begin", "again"),
    [
        (b"GET / HTTP/1.1\r\n", b"x-header: y\r\n"),  # many lines
        (b"GET / HTTP/1.1\r\nx: ", b"y" * 4096),  # one endless value
        (b"GET / HTTP/1.1\r\n", b"n" * 4096),  # one endless name
        (b"GET /", b"a" * 4096),  # an endless target
        (b"", b"\r\n" * 2048),  # empty lines
        (b"POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n1;", b"e" * 4096),  # an endless extension of a chunk
        (b"POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n0\r\nx: ", b"t" * 4096),  # an endless trailer
    ],
)
async def test_endless_heads_are_refused_within_the_limit(begin: bytes, again: bytes) -> None:
    door = Door()
    async with door.open() as url, peer(url) as client:
        client.send(begin)
        sent = 0
        while not (door.refusals or door.left) and sent < 1 << 22:
            client.send(again)
            await client.writer.drain()
            sent += len(again)
            await asyncio.sleep(0)
        assert sent < 1 << 22
        assert await client.refused() == (431, "head_too_large")
        assert door.refusals == ["head_too_large"]


async def test_a_head_at_the_limit_passes_and_one_line_more_does_not() -> None:
    door = Door()
    async with door.open() as url, peer(url) as client:
        lines = "".join(f"x-{n}: y\r\n" for n in range(LIMITS.head_lines))
        client.send(f"GET /a HTTP/1.1\r\n{lines}\r\n".encode())
        assert (await client.answer())[0] == 200
        client.send(f"GET /a HTTP/1.1\r\nhost: x\r\n{lines}\r\n".encode())
        assert await client.refused() == (431, "head_too_large")


async def test_a_head_that_drips_is_refused_in_time() -> None:
    door = Door(replace(LIMITS, head_s=0.2))
    async with door.open() as url, peer(url) as client:
        client.send(b"GET / HTTP/1.1\r\n")

        async def drip() -> None:
            while not door.refusals:
                client.send(b"x")
                await asyncio.sleep(0.02)

        dripping = asyncio.create_task(drip())
        assert await client.refused() == (408, "request_too_slow")
        await dripping


@pytest.mark.parametrize("drips", [False, True])
async def test_a_body_that_stops_or_drips_is_refused_in_time(drips: bool) -> None:
    door = Door(replace(LIMITS, body_silence_s=0.2, body_bytes_per_s=1000))
    async with door.open() as url, peer(url) as client:
        client.send(b"POST / HTTP/1.1\r\ncontent-length: 1000000\r\n\r\n")

        async def drip() -> None:
            while drips and not door.refusals:
                client.send(b"x")
                await asyncio.sleep(0.02)

        dripping = asyncio.create_task(drip())
        assert await client.refused() == (408, "request_too_slow")
        await dripping
        await until(lambda: door.left == 1)


async def test_a_slow_body_is_refused_in_the_form_of_its_api() -> None:
    async with Door(replace(LIMITS, body_silence_s=0.2)).open() as url, peer(url) as client:
        client.send(b"POST /v1/messages HTTP/1.1\r\ncontent-length: 9\r\n\r\n")
        status, _, body = await client.answer()
        assert (status, json.loads(body)["type"]) == (408, "error")


async def test_an_answer_may_take_longer_than_a_request() -> None:
    door = Door(replace(LIMITS, head_s=0.5, body_silence_s=0.5))
    door.gate = asyncio.Event()
    async with door.open() as url, peer(url) as client:
        client.send(b"POST /a HTTP/1.1\r\ncontent-length: 4\r\n\r\nab")
        await asyncio.sleep(0.01)
        client.send(b"cd", b"GET /b HTT")  # the second one is not late while it could not be answered
        await asyncio.sleep(1.2)
        assert not door.refusals
        door.gate.set()
        assert (await client.answer())[2] == b"abcd"
        client.send(b"P/1.1\r\n\r\n")
        assert (await client.answer())[2] == b"/b"


async def test_requests_ahead_of_their_turn_are_answered_in_order_and_not_kept_without_bound() -> None:
    door = Door()
    door.gate = asyncio.Event()
    async with door.open() as url, peer(url) as client:
        for n in range(1000):
            client.send(f"GET /{n} HTTP/1.1\r\nhost: x\r\n\r\n".encode())
        await until(lambda: door.refusals == ["invalid_request"])
        door.gate.set()
        answers = [await client.answer() for _ in range(1 + LIMITS.pipelined)]
        assert [body for _, _, body in answers] == [f"/{n}".encode() for n in range(1 + LIMITS.pipelined)]
        assert answers[-1][1]["connection"] == "close"
        assert await client.ended()


async def test_a_client_that_leaves_is_noticed_behind_requests_ahead_of_their_turn() -> None:
    async with served(Script(fault="hang")) as gateway, peer(gateway.url) as client:
        client.send(post(), post(), post())
        await gateway.engines[0].arrived.wait()
        client.writer.transport.abort()
        await gateway.ended("cancelled")


async def test_with_too_many_connections_the_longest_idle_one_makes_room() -> None:
    door = Door(replace(LIMITS, connections=2))
    async with door.open() as url, peer(url) as first, peer(url) as second:
        for client in (first, second, first):
            client.send(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
            assert (await client.answer())[0] == 200
        async with peer(url) as third:
            third.send(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
            assert (await third.answer())[0] == 200
            assert await second.ended()
            first.send(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
            assert (await first.answer())[0] == 200
    assert door.refusals == ["connections"]
    await until(lambda: not (door.connections.new or door.connections.known))


async def test_strangers_who_say_little_displace_each_other_and_no_client_between_two_requests() -> None:
    door = Door(replace(LIMITS, connections=5))
    async with door.open() as url, AsyncExitStack() as stack:
        regulars = [await stack.enter_async_context(peer(url)) for _ in range(2)]
        for regular in regulars:
            regular.send(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
            assert (await regular.answer())[0] == 200
        for number in range(20):
            stranger = await stack.enter_async_context(peer(url))
            stranger.send(b"GET / HTTP/1.1\r\n")
            await until(lambda most=number: len(door.refusals) == max(0, most - 2))  # type: ignore[misc]
        for regular in regulars:
            regular.send(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
            assert (await regular.answer())[0] == 200


async def test_a_new_client_finds_room_beside_many_idle_ones() -> None:
    door = Door(replace(LIMITS, connections=3))
    async with door.open() as url, AsyncExitStack() as stack:
        for _ in range(10):
            client = await stack.enter_async_context(peer(url))
            client.send(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
            assert (await client.answer())[0] == 200
    assert door.refusals == ["connections"] * 7


async def test_with_only_busy_connections_a_further_one_is_refused() -> None:
    door = Door(replace(LIMITS, connections=1))
    door.gate = asyncio.Event()
    async with door.open() as url, peer(url) as first:
        first.send(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
        await until(lambda: len(door.scopes) == 1)
        async with peer(url) as second:
            status, headers, body = await second.answer()
            assert (status, json.loads(body)["error"]["code"]) == (503, "gateway_full")
            assert headers["retry-after"] == "1"
        door.gate.set()
        assert (await first.answer())[0] == 200


async def test_a_body_that_is_too_large_is_refused_and_its_rest_not_read() -> None:
    async with served(max_payload_size=1000) as gateway, peer(gateway.url) as client:
        client.send(b"POST /v1/completions HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n", b"400\r\n" + b"x" * 1024)
        assert await client.refused() == (413, "payload_too_large")
        assert not gateway.engines[0].requests


async def test_bodies_that_wait_for_their_rest_do_not_fill_the_memory() -> None:
    size = 1 << 20
    async with served(max_payload_size=size) as gateway, AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(peer(gateway.url)) for _ in range(LARGEST_BODIES + 4)]
        for client in clients:
            client.send(post(b" " * size)[:-1])
        await until(lambda: gateway.value("leafcutter_refusals_total", reason="gateway_full") == 4)
        assert (await gateway.post()).status_code == 503
        for client in clients:
            client.writer.transport.abort()
        await until(lambda: gateway.endings() == {"cancelled": LARGEST_BODIES, "rejected": 5})
        assert (await gateway.post()).status_code == 200


@pytest.mark.parametrize("begin", [b"\x00", post() + b"\x00"])
async def test_who_sends_on_and_on_after_a_refusal_is_cut_off(begin: bytes) -> None:
    gate = asyncio.Event()  # it never opens
    limits = replace(LIMITS, linger_s=600, linger_bytes=1 << 20)
    door = Door(limits)
    door.gate = gate
    async with door.open() as url, peer(url) as client:
        client.send(begin)
        await until(lambda: len(door.refusals) == 1)

        async def send_on_and_on() -> None:
            while True:
                client.send(b"x" * 65536)
                await client.writer.drain()

        with pytest.raises(ConnectionError):
            await send_on_and_on()


async def test_who_does_not_hang_up_after_a_refusal_is_let_go() -> None:
    door = Door(replace(LIMITS, linger_s=0.05))
    async with door.open() as url, peer(url) as client:
        client.send(b"\x00")
        await until(lambda: len(door.refusals) == 1)
        await until(lambda: not (door.connections.new or door.connections.known))


async def test_a_connection_that_says_nothing_is_closed_as_an_idle_one() -> None:
    door = Door()
    config = server_config(configure(keep_alive_timeout_secs=1), door, http=door.connections, lifespan="off")
    async with listening(door, config) as url, peer(url) as client:
        assert await client.ended()
    assert not door.refusals


# --- manners ----------------------------------------------------------------------------------------------------------

JAVA = (
    b"POST /v1/chat/completions HTTP/1.1\r\nConnection: Upgrade, HTTP2-Settings\r\n"
    b"Content-Length: %d\r\nHost: 127.0.0.1:30000\r\n"
    b"HTTP2-Settings: AAEAAEAAAAIAAAAAAAMAAAAAAAQBAAAAAAUAAEAAAAYABgAA\r\n"
    b"Upgrade: h2c\r\nUser-Agent: Java-http-client/21.0.2\r\nContent-Type: application/json\r\n\r\n" % len(BODY)
)


@pytest.mark.parametrize("parts", [(JAVA + BODY,), (JAVA, BODY), (JAVA + BODY[:9], BODY[9:] + JAVA, BODY)])
async def test_an_offer_of_http2_is_ignored_and_the_body_is_read(parts: Sequence[bytes]) -> None:
    async with served() as gateway, peer(gateway.url) as client:
        for part in parts:
            client.send(part)
            await asyncio.sleep(0.05)
        for number in range(1, b"".join(parts).count(b"POST") + 1):
            status, headers, body = await client.answer()
            assert (status, "upgrade" in headers) == (200, False)
            assert b"Paris" in body
            request = gateway.engines[0].requests[number - 1]
            assert request.body == BODY
            assert not {"upgrade", "http2-settings"} & set(request.headers)
        client.send(b"GET /health HTTP/1.1\r\nconnection: upgrade\r\nupgrade: h2c\r\n\r\n" * 2)
        assert [(await client.answer())[0] for _ in range(2)] == [200, 200]


@pytest.mark.parametrize("body", [BODY, STREAM])
async def test_http_1_0_gets_no_chunks(body: bytes) -> None:
    async with served() as gateway, peer(gateway.url) as client:
        client.send(post(body, version="1.0"))
        status, headers, content = await client.answer()
        assert (status, headers["connection"], "transfer-encoding" in headers) == (200, "close", False)
        assert b"Paris" in content
        assert body is BODY or content.endswith(b"data: [DONE]\n\n")
        assert await client.ended()
        await gateway.ended("ok")


@pytest.mark.parametrize("path", ["/health", "/liveness", "/readiness", "/metrics", "/v1/models", "/workers"])
async def test_head_is_get_without_the_body(path: str) -> None:
    async with served() as gateway, peer(gateway.url) as client:
        client.send(f"HEAD {path} HTTP/1.1\r\nhost: x\r\n\r\nGET /nowhere HTTP/1.1\r\n\r\n".encode())
        first = await client.reader.readuntil(b"\r\n\r\n")
        assert first.startswith(b"HTTP/1.1 200 ")
        assert (await client.answer())[0] == 404  # it follows at once


@pytest.mark.parametrize("body", [BODY, STREAM])
@pytest.mark.parametrize("version", ["1.0", "1.1"])
async def test_a_half_closed_client_gets_its_answer(body: bytes, version: str) -> None:
    gate = asyncio.Event()
    async with served(Script(gate=gate)) as gateway, peer(gateway.url) as client:
        client.send(post(body, version=version))
        client.writer.write_eof()
        await gateway.engines[0].arrived.wait()
        await asyncio.sleep(0.3)  # some probes are sent
        gate.set()
        status, _, content = await client.answer()
        assert status == 200
        assert b"Paris" in content
        assert await client.ended()
        await gateway.ended("ok")


@pytest.mark.parametrize("after", [None, 0, 2])
async def test_a_half_closed_client_that_leaves_then_is_noticed(after: int | None) -> None:
    async with served(Script(fault="hang", after=after)) as gateway, peer(gateway.url) as client:
        client.send(post(STREAM))
        client.writer.write_eof()
        await gateway.engines[0].arrived.wait()
        if after == 2:
            await client.reader.readuntil(b"data: ")
        client.writer.close()
        await gateway.ended("cancelled")


async def test_a_client_that_closes_its_side_inside_its_request_is_let_go() -> None:
    async with served() as gateway, peer(gateway.url) as client:
        client.send(post()[:-5])
        client.writer.write_eof()
        assert await client.ended()
        await gateway.ended("cancelled")


async def test_a_client_may_wait_to_be_asked_for_its_body() -> None:
    async with served(max_payload_size=1000) as gateway, peer(gateway.url) as client:
        client.send(post(b"", "expect: 100-continue").replace(b"length: 0", b"length: %d" % len(BODY)))
        assert await client.reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        client.send(BODY)
        assert (await client.answer())[0] == 200
        client.send(post(b"", "expect: 100-continue").replace(b"length: 0", b"length: 1001"))
        assert await client.refused() == (413, "payload_too_large")  # unasked


@pytest.mark.parametrize(
    ("request_line", "status"),
    [
        ("TRACE / HTTP/1.1", 404),
        ("TRACE /health HTTP/1.1", 405),
        ("OPTIONS * HTTP/1.1", 404),
        ("DELETE /v1/chat/completions HTTP/1.1", 404),
        ("PROPFIND /health HTTP/1.1", 405),
        ("GET http://elsewhere:1/health HTTP/1.1", 200),
        ("GET http://elsewhere/nowhere HTTP/1.1", 404),
        ("GET http://elsewhere HTTP/1.1", 404),
    ],
)
async def test_odd_requests_get_clean_answers(request_line: str, status: int) -> None:
    async with served() as gateway, peer(gateway.url) as client:
        client.send(f"{request_line}\r\nhost: x\r\n\r\n".encode())
        answer = await client.answer()
        assert answer[0] == status
        assert status == 200 or json.loads(answer[2])["error"]["code"] == "unknown_url"
        client.send(post(target=f"http://elsewhere{CHAT}"))
        assert (await client.answer())[0] == 200


@pytest.mark.parametrize(
    ("request_head", "expected"),
    [
        ("CONNECT elsewhere:443 HTTP/1.1", (405, "unknown_url")),
        ("BREW / HTTP/1.1", (405, "unknown_url")),
        ("GET / HTTP/2.0", (505, "http_version_not_supported")),
        ("GET /", (505, "http_version_not_supported")),
        ("GET /a b HTTP/1.1", (400, "invalid_request")),
        ("GET ?x HTTP/1.1", (400, "invalid_request")),
        ("POST / HTTP/1.1\r\ncontent-length: 5\r\ncontent-length: 5", (400, "invalid_request")),
        ("POST / HTTP/1.1\r\ncontent-length: 5\r\ncontent-length: 6", (400, "invalid_request")),
        ("POST / HTTP/1.1\r\ncontent-length: 5\r\ntransfer-encoding: chunked", (400, "invalid_request")),
        ("POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\ncontent-length: 5", (400, "invalid_request")),
        ("POST / HTTP/1.1\r\ntransfer-encoding: xchunked", (400, "invalid_request")),
        ("POST / HTTP/1.1\r\ncontent-length: +5", (400, "invalid_request")),
        ("POST / HTTP/1.1\r\ncontent-length : 5", (400, "invalid_request")),
        ("GET / HTTP/1.1\r\nx: y\r\n folded: z", (400, "invalid_request")),
    ],
)
async def test_bad_requests_are_refused(request_head: str, expected: tuple[int, str]) -> None:
    async with served() as gateway, peer(gateway.url) as client:
        client.send(f"{request_head}\r\n\r\n0\r\n\r\nGET /workers HTTP/1.1\r\n\r\n".encode())
        assert await client.refused() == expected
        assert gateway.value("leafcutter_refusals_total", reason=expected[1]) == 1


async def test_a_websocket_is_not_opened() -> None:
    async with served() as gateway, peer(gateway.url) as client:
        client.send(
            b"GET /v1/realtime HTTP/1.1\r\nhost: x\r\nconnection: Upgrade\r\nupgrade: websocket\r\n"
            b"sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        )
        assert (await client.answer())[0] == 404


async def test_trailers_do_not_pass_for_headers() -> None:
    async with served() as gateway, peer(gateway.url) as client:
        chunk = b"%x\r\n%s\r\n0\r\nx-evil: 1\r\n\r\n" % (len(BODY), BODY)
        client.send(f"POST {CHAT} HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n".encode(), chunk)
        assert (await client.answer())[0] == 200
        assert "x-evil" not in gateway.engines[0].requests[0].headers


async def test_garbage_inside_a_body_ends_its_request() -> None:
    async with served() as gateway, peer(gateway.url) as client:
        client.send(f"POST {CHAT} HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n".encode())
        assert await client.refused() == (400, "invalid_request")
        await gateway.ended("cancelled")


async def test_garbage_behind_a_request_does_not_disturb_its_answer() -> None:
    gate = asyncio.Event()
    async with served(Script(gate=gate)) as gateway, peer(gateway.url) as client:
        client.send(post(STREAM), b"\x00\x01 garbage")
        await gateway.engines[0].arrived.wait()
        await until(lambda: gateway.value("leafcutter_refusals_total") == 1)
        gate.set()
        status, _, body = await client.answer()
        assert status == 200
        assert body.endswith(b"data: [DONE]\n\n")
        assert await client.ended()


async def test_random_bytes_never_leave_a_connection_open() -> None:
    chance, door = random.Random(7), Door(replace(LIMITS, head_s=0.3, body_silence_s=0.3))
    async with door.open() as url:

        async def one() -> None:
            content = bytearray(post(b"x" * chance.randrange(50)) + b"GET / HTTP/1.1\r\n\r\n")
            for _ in range(chance.randint(1, 6)):
                content[chance.randrange(len(content))] = chance.randrange(256)
            async with peer(url) as client:
                client.send(bytes(content))
                client.writer.write_eof()
                async with asyncio.timeout(20):
                    await client.reader.read()

        await asyncio.gather(*(one() for _ in range(200)))
        await until(lambda: not (door.connections.new or door.connections.known))
