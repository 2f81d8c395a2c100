"""The way to the engines: one pooled HTTP client, one request to one engine, its answer as it comes.

Failures are told apart because their cures differ: `EngineUnreachable` (nothing was sent: try another engine),
`EngineLost` (the connection broke) and `EngineTimeout` (no answer in time: trying elsewhere would double the work). The
deadline of the whole request belongs to the client's side.
"""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager

import aiohttp
from multidict import CIMultiDict
from yarl import URL

from router.config import Config
from router.errors import EngineLost, EngineTimeout, EngineUnreachable
from router.gateway.headers import Headers, end_to_end, for_engine

KEEP_ALIVE_S = 4.0  # uvicorn, so vLLM, drops idle connections after 5 s: let go first, or the next request is reset
LARGE_BODY_BYTES = 1 << 20  # from here on sent piece by piece, so that other requests get their turn in between
OWN_HEADERS = ("User-Agent", "Accept", "Accept-Encoding", "Content-Type")  # aiohttp's own: the client's pass instead


class UpstreamAnswer:
    """An engine's answer. Every read is bound: the first body byte by what is left of `first_byte_timeout_secs`, later
    ones by `idle_timeout_secs`."""

    def __init__(self, response: aiohttp.ClientResponse, first_byte_by_s: float, idle_s: float) -> None:
        self._response = response
        self._by_s: float | None = first_byte_by_s
        self._idle_s = idle_s
        self.status = response.status
        self.streamed = response.content_type == "text/event-stream" and response.status < 400

    @property
    def headers(self) -> Headers:
        """End-to-end headers, names in lower case."""
        return end_to_end((name.lower(), value) for name, value in self._response.raw_headers)

    async def read(self) -> bytes:
        """The next bytes of the body, as soon as there are any; none at its end. Raises EngineLost, EngineTimeout."""
        by_s, self._by_s = self._by_s, None
        content = self._response.content
        with _failures():
            if (chunk := content.read_nowait()) or content.at_eof():
                return chunk
            if by_s is None:
                by_s = asyncio.get_running_loop().time() + self._idle_s
            async with asyncio.timeout_at(by_s):
                return await content.readany()

    async def read_all(self) -> bytes:
        """The (rest of the) body."""
        chunks = []
        while chunk := await self.read():
            chunks.append(chunk)
        return b"".join(chunks)

    def close(self) -> None:
        """Cuts the connection, which stops the engine's work; one whose body was read to its end is kept for others."""
        self._response.close()


class Upstream:
    """Sends requests to engines. Use within `running()`, which owns the connections."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._session: aiohttp.ClientSession | None = None

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEP_ALIVE_S)
        async with aiohttp.ClientSession(
            connector=connector,
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=self._config.reliability.connect_timeout_secs),
            cookie_jar=aiohttp.DummyCookieJar(),  # clients must not meet each other's cookies
            auto_decompress=False,
            skip_auto_headers=OWN_HEADERS,
        ) as self._session:
            yield

    async def post(
        self, url: str, query: bytes, headers: Iterable[tuple[bytes, bytes]], request_id: str, body: bytes
    ) -> UpstreamAnswer:
        """Posts `body` to `url` and `query` (may be empty), and returns the answer once its headers are there.

        `headers`: the client's, names in lower case. Raises EngineUnreachable, EngineLost, EngineTimeout.
        """
        keys = self._config.engines.worker_api_key, self._config.server.api_key
        assert self._session is not None, "post outside running()"
        first_byte_by_s = asyncio.get_running_loop().time() + self._config.reliability.first_byte_timeout_secs
        with _failures():
            async with asyncio.timeout_at(first_byte_by_s):
                response = await self._session.post(
                    URL(f"{url}?{query.decode()}" if query else url, encoded=True),
                    headers=CIMultiDict(for_engine(headers, request_id, *keys)),
                    data=body if len(body) < LARGE_BODY_BYTES else io.BytesIO(body),
                    allow_redirects=False,
                )
        return UpstreamAnswer(response, first_byte_by_s, self._config.reliability.idle_timeout_secs)


@contextmanager
def _failures() -> Iterator[None]:
    """aiohttp's errors as ours; no message tells the engine's address. They lose their traceback: a torn answer keeps
    its error, whose traceback keeps the answer, and such a cycle waits for the garbage collector."""
    try:
        yield
    except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
        raise EngineUnreachable("The engine could not be reached.") from error.with_traceback(None)
    except TimeoutError as error:
        raise EngineTimeout("The engine did not answer in time.") from error.with_traceback(None)
    except (aiohttp.ClientError, OSError) as error:
        raise EngineLost("The connection to the engine was lost.") from error.with_traceback(None)
