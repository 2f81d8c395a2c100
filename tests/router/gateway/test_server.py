"""How uvicorn serves the gateway."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from router.config import Config, configure
from router.gateway.server import server_config
from tests.support.gateway_server import listening

Send = Callable[[dict[str, Any]], Awaitable[None]]
OPENAI_CLIENT_KEEP_ALIVE_S = 5


async def hello(scope: object, receive: object, send: Send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
    await send({"type": "http.response.body"})


def test_idle_connections_outlive_those_of_the_usual_client() -> None:
    """If both ends give up after the same time, a request may meet a connection that is just being closed."""
    assert server_config(Config(), hello).timeout_keep_alive > 2 * OPENAI_CLIENT_KEEP_ALIVE_S


async def test_an_idle_connection_stays_open_as_long_as_the_option_says() -> None:
    config = server_config(configure(port=0, keep_alive_timeout_secs=1), hello)
    config.lifespan = "off"
    async with listening(hello, config) as url:
        reader, writer = await asyncio.open_connection("127.0.0.1", int(url.rsplit(":", 1)[1]))
        for pause_s in (0.0, 0.5):
            await asyncio.sleep(pause_s)
            writer.write(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
            assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200")
        assert await asyncio.wait_for(reader.read(), 5) == b""  # closed by the gateway
        writer.close()
