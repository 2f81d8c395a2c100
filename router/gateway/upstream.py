"""Sending requests to engines with one pooled HTTP client, and reading their answers as they arrive.

There are three kinds of failure, because each needs another reaction: `EngineUnreachable` (nothing was sent, so another
engine can be tried), `EngineLost` (the connection broke) and `EngineTimeout` (there was no answer in time, and another
engine would only do the work twice). The deadline of the whole request is kept by `client`.
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

# uvicorn, and so vLLM, closes idle connections after 5 s. The gateway must close them first, or a request that it sends
# at that moment is reset.
KEEP_ALIVE_S = 4.0
LARGE_BODY_BYTES = 1 << 20  # larger bodies are sent in pieces, so that other requests get their turn in between
OWN_HEADERS = ("User-Agent", "Accept", "Accept-Encoding", "Content-Type")  # aiohttp must not add these of its own


class UpstreamAnswer:
    """An engine's answer, of which the head has arrived.

    first_byte_deadline_s: when the first byte of the body must have arrived, on the clock of the event loop. idle_s:
    how long each later read may wait.
    """

    def __init__(self, response: aiohttp.ClientResponse, first_byte_deadline_s: float, idle_s: float) -> None:
        self._response = response
        self._first_byte_deadline_s: float | None = first_byte_deadline_s
        self._idle_s = idle_s
        self.status = response.status
        self.streamed = response.content_type == "text/event-stream" and response.status < 400

    @property
    def headers(self) -> Headers:
        """The end-to-end headers, with names in lower case."""
        return end_to_end((name.lower(), value) for name, value in self._response.raw_headers)

    async def read(self) -> bytes:
        """The next bytes of the body, as soon as there are any; empty at its end. Raises EngineLost, EngineTimeout."""
        deadline_s, self._first_byte_deadline_s = self._first_byte_deadline_s, None
        content = self._response.content
        with _failures():
            if (chunk := content.read_nowait()) or content.at_eof():
                return chunk
            if deadline_s is None:
                deadline_s = asyncio.get_running_loop().time() + self._idle_s
            async with asyncio.timeout_at(deadline_s):
                return await content.readany()

    async def read_all(self) -> bytes:
        """The body, or what is left of it. Raises EngineLost, EngineTimeout."""
        chunks = []
        while chunk := await self.read():
            chunks.append(chunk)
        return b"".join(chunks)

    def close(self) -> None:
        """End the answer.

        If its body was not read to the end, this closes the connection, which stops the engine's work. Otherwise the
        connection is kept for other requests.
        """
        self._response.close()


class Upstream:
    """Sends requests to engines, within `running()`, which owns the connections."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._session: aiohttp.ClientSession | None = None

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEP_ALIVE_S)
        async with aiohttp.ClientSession(
            connector=connector,
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=self._config.reliability.connect_timeout_secs),
            cookie_jar=aiohttp.DummyCookieJar(),  # clients must not share cookies
            auto_decompress=False,
            skip_auto_headers=OWN_HEADERS,
        ) as self._session:
            yield

    async def post(
        self, url: str, query: bytes, headers: Iterable[tuple[bytes, bytes]], request_id: str, body: bytes
    ) -> UpstreamAnswer:
        """Post `body` to `url` with `query`, which may be empty, and return the answer once its headers have arrived.

        headers: the client's, with names in lower case. Raises EngineUnreachable, EngineLost and EngineTimeout.
        """
        keys = self._config.engines.worker_api_key, self._config.server.api_key
        assert self._session is not None, "post outside running()"
        first_byte_deadline_s = asyncio.get_running_loop().time() + self._config.reliability.first_byte_timeout_secs
        with _failures():
            async with asyncio.timeout_at(first_byte_deadline_s):
                response = await self._session.post(
                    URL(f"{url}?{query.decode()}" if query else url, encoded=True),
                    headers=CIMultiDict(for_engine(headers, request_id, *keys)),
                    data=body if len(body) < LARGE_BODY_BYTES else io.BytesIO(body),
                    allow_redirects=False,
                )
        return UpstreamAnswer(response, first_byte_deadline_s, self._config.reliability.idle_timeout_secs)


@contextmanager
def _failures() -> Iterator[None]:
    """Turn aiohttp's errors into this project's. No message holds the address of an engine.

    The errors lose their traceback. A broken answer keeps its error, and the traceback of that error would keep the
    answer, which makes a cycle that only the garbage collector can free.
    """
    try:
        yield
    except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
        raise EngineUnreachable("The engine could not be reached.") from error.with_traceback(None)
    except TimeoutError as error:
        raise EngineTimeout("The engine did not answer in time.") from error.with_traceback(None)
    except (aiohttp.ClientError, OSError) as error:
        raise EngineLost("The connection to the engine was lost.") from error.with_traceback(None)
