"""Clients that take none of their last bytes are cut off, and slow ones are not."""

from __future__ import annotations

import asyncio
import socket

import pytest
import uvicorn

from router.gateway import server
from router.gateway.beside import beside
from router.gateway.client import Receive, Scope, Send

HUGE = b"x" * (16 << 20)


async def huge(scope: Scope, receive: Receive, send: Send) -> None:
    del receive
    assert scope["type"] == "http"
    await send({"type": "http.response.start", "status": 200, "headers": [(b"connection", b"close")]})
    await send({"type": "http.response.body", "body": HUGE})


@pytest.mark.parametrize("reads", [False, True])
async def test_a_client_that_takes_nothing_is_cut_off_and_a_slow_one_gets_all(
    reads: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "LOOK_S", 0.02)
    monkeypatch.setattr(server, "STUCK_S", 0.3)
    config = uvicorn.Config(huge, http="httptools", ws="none", lifespan="off", log_config=None)
    quiet = server.QuietServer(config)
    listener = socket.create_server(("127.0.0.1", 0))
    serving = asyncio.create_task(quiet.serve([listener]))
    await quiet.listening.wait()
    connections = quiet.server_state.connections
    with beside(server.cut_off_stuck(connections)):
        reader, writer = await asyncio.open_connection(*listener.getsockname(), limit=1 << 16)
        writer.write(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
        size = 0
        while reads and (chunk := await reader.read(1 << 19)):
            size += len(chunk)
            await asyncio.sleep(0.03)  # the whole answer takes longer than a client may be stuck
        async with asyncio.timeout(10):
            while connections:
                await asyncio.sleep(0.02)
        assert (size > len(HUGE)) is reads
        writer.close()
    quiet.should_exit = True
    await serving
