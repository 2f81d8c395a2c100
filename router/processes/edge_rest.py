"""What an edge answers besides completions: its own health, and everything else as the router process answers it."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp
from multidict import CIMultiDict
from yarl import URL

from router.config import Config
from router.errors import RequestError, RouterAway
from router.gateway.client import Client, ClientGone, Receive, Scope, Send
from router.gateway.front import JSON, readiness
from router.gateway.headers import end_to_end, for_client
from router.gateway.upstream import KEEP_ALIVE_S
from router.processes.remote_decider import RemoteDecider

ANSWER_S = 30.0  # the router process has so long to answer


class EdgeRest:
    """The ASGI application. path: the Unix socket on which the router process answers. decider: knows the fleet."""

    def __init__(self, config: Config, path: str, decider: RemoteDecider) -> None:
        self._most_bytes = config.server.max_payload_size
        self._path, self._decider = path, decider
        self._session: aiohttp.ClientSession | None = None

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        async with aiohttp.ClientSession(
            connector=aiohttp.UnixConnector(self._path, keepalive_timeout=KEEP_ALIVE_S),
            timeout=aiohttp.ClientTimeout(total=ANSWER_S),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
        ) as self._session:
            yield

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        client, asked = Client(scope, receive, send), (scope["method"], scope["path"])
        try:
            if asked in (("GET", "/health"), ("GET", "/liveness")):
                await client.reply(200, [], b"")
            elif asked == ("GET", "/readiness"):
                await self._tell_readiness(client)
            else:
                await self._pass_on(client, scope)
        except ClientGone:
            pass
        except RequestError as error:
            await client.fail(error, [])

    async def _tell_readiness(self, client: Client) -> None:
        status, content = readiness(*self._decider.engines)
        await client.reply(status, [JSON], json.dumps(content).encode())

    async def _pass_on(self, client: Client, scope: Scope) -> None:
        """Let the router process answer. Raises RouterAway, PayloadTooLarge and ClientGone."""
        body = await client.read_body(self._most_bytes)
        target, query = scope["raw_path"].decode("latin-1"), scope["query_string"].decode("latin-1")
        headers = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in end_to_end(client.raw_headers)]
        assert self._session is not None, "a request outside running()"
        try:
            async with self._session.request(
                scope["method"],
                URL(f"http://router{target}?{query}" if query else f"http://router{target}", encoded=True),
                data=body,
                headers=CIMultiDict(headers),
                allow_redirects=False,
            ) as answer:
                status, content = answer.status, await answer.read()
                answered = for_client(end_to_end([(name.lower(), value) for name, value in answer.raw_headers]))
        except (aiohttp.ClientError, OSError):  # a timeout is one too
            raise RouterAway("The router process is away and about to be back.") from None
        await client.reply(status, answered, content)
