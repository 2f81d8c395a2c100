"""TLS to clients and to engines. tests/data/tls: keys and certificates for tests, valid until 2126."""

from __future__ import annotations

import asyncio
import shutil
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import uvloop

from router.config import configure
from router.engines.probe import healthy, open_client
from router.errors import ConfigError, EngineLost
from router.gateway.server_tls import ServerTls
from router.gateway.upstream import Upstream
from router.tls import engine_context, server_context

DATA = Path(__file__).parents[2] / "data/tls"


def pem(name: str) -> str:
    return str(DATA / f"{name}.pem")


def client(certificate: str | None = None) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=pem("ca"))
    if certificate is not None:
        context.load_cert_chain(pem(certificate))
    return context


@asynccontextmanager
async def talking(context: ssl.SSLContext) -> AsyncIterator[int]:
    """A server that answers HTTP requests in one word."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\nok")
            await writer.drain()
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0, ssl=context)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()


async def seen(port: int, context: ssl.SSLContext) -> str | None:
    """The name in the server's certificate; None: the server did not want to talk."""
    writer = None
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
        writer.write(b"GET / HTTP/1.1\r\n\r\n")
        if not await reader.read(1):
            return None
        found: Any = writer.get_extra_info("ssl_object").getpeercert()
        return str(found["subject"][0][0][1])
    except OSError:
        return None
    finally:
        if writer is not None:
            writer.close()


@pytest.mark.parametrize("loop", [asyncio.run, uvloop.run])
def test_a_certificate_and_authorities_are_replaced_while_serving(loop: Any, tmp_path: Path) -> None:
    cert, authorities = tmp_path / "cert.pem", tmp_path / "ca.pem"

    async def work() -> None:
        shutil.copy(pem("server"), cert)
        shutil.copy(pem("ca"), authorities)
        tls = ServerTls(configure(tls_cert=str(cert), tls_client_ca=str(authorities)).server)
        async with tls.running(), talking(tls.context) as port:
            assert await seen(port, client("client")) == "test server"
            assert await seen(port, client("stranger")) is None
            assert await seen(port, client()) is None
            shutil.copy(pem("server2"), cert)
            while await seen(port, client("client")) != "test server2":
                await asyncio.sleep(0.05)
            shutil.copy(pem("other_ca"), authorities)
            while await seen(port, client("stranger")) != "test server2":
                await asyncio.sleep(0.05)
            assert await seen(port, client("client")) is None

    loop(work())


async def test_files_that_do_not_fit_change_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    shutil.copy(pem("server"), cert)
    shutil.copy(pem("server"), key)
    tls = ServerTls(configure(tls_cert=str(cert), tls_key=str(key)).server)
    async with tls.running(), talking(tls.context) as port:
        shutil.copy(pem("server2"), cert)  # the key is still the old one's
        while "what was read before stays" not in caplog.text:
            await asyncio.sleep(0.02)
        assert await seen(port, client()) == "test server"
        shutil.copy(pem("server2"), key)
        while await seen(port, client()) != "test server2":
            await asyncio.sleep(0.05)


@pytest.mark.parametrize(
    ("options", "wrong"),
    [
        ({"tls_cert": "/no/such/file"}, "tls_cert"),
        ({"tls_cert": pem("ca")}, "tls_cert"),
        ({"tls_cert": pem("server"), "tls_key": pem("client")}, "tls_cert"),
        ({"tls_cert": pem("server"), "tls_client_ca": __file__}, "tls_client_ca"),
    ],
)
def test_files_that_cannot_be_are_named(options: dict[str, str], wrong: str) -> None:
    with pytest.raises(ConfigError) as caught:
        server_context(configure(**options).server)
    assert caught.value.key == wrong


@pytest.mark.parametrize(
    ("options", "wrong"),
    [
        ({"worker_ca": "/no/such/file"}, "worker_ca"),
        ({"worker_cert": pem("ca")}, "worker_cert"),
        ({"worker_key": pem("client")}, "worker_key"),
    ],
)
def test_files_for_engines_that_cannot_be_are_named(options: dict[str, str], wrong: str) -> None:
    with pytest.raises(ConfigError) as caught:
        engine_context(configure(**options).engines)
    assert caught.value.key == wrong


@pytest.mark.parametrize(
    ("options", "reached"),
    [
        ({"worker_ca": pem("ca"), "worker_cert": pem("client")}, True),
        ({"worker_ca": pem("ca"), "worker_cert": pem("stranger")}, False),
        ({"worker_ca": pem("ca")}, False),
        ({"worker_ca": pem("other_ca"), "worker_cert": pem("client")}, False),
        ({"worker_cert": pem("client")}, False),  # the system does not know the authority
    ],
)
async def test_engines_and_the_gateway_show_each_other_who_they_are(options: dict[str, str], reached: bool) -> None:
    config = configure(**options)
    demands = server_context(configure(tls_cert=pem("server"), tls_client_ca=pem("ca")).server)
    async with talking(demands) as port, open_client(config) as prober:
        url = f"https://127.0.0.1:{port}"
        assert await healthy(prober, url) == reached
        upstream = Upstream(config)
        async with upstream.running():
            got = None
            with suppress(EngineLost):
                answer = await upstream.send(url, "/", b"", [], "id", (b"{}",))
                got = await answer.read_all()
                answer.close()
            assert (got == b"ok") == reached
