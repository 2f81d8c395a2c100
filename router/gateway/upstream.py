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

Headers = list[tuple[bytes, bytes]]

KEEP_ALIVE_S = 4.0  # uvicorn, so vLLM, drops idle connections after 5 s: let go first, or the next request is reset
LARGE_BODY_BYTES = 1 << 20  # from here on sent piece by piece, so that other requests get their turn in between
# Belong to one connection, not to the message (RFC 9110, section 7.6.1), or are set anew on the other side.
HOP_BY_HOP = frozenset(
    b"connection keep-alive proxy-connection proxy-authenticate proxy-authorization te trailer transfer-encoding"
    b" upgrade host content-length expect".split()
)
OWN_HEADERS = ("User-Agent", "Accept", "Accept-Encoding", "Content-Type")  # aiohttp's own: the client's pass instead


class Answer:
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
        return passing((name.lower(), value) for name, value in self._response.raw_headers)

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
        self._authorization = f"Bearer {config.worker_api_key}".encode() if config.worker_api_key else None
        self._session: aiohttp.ClientSession | None = None

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEP_ALIVE_S)
        async with aiohttp.ClientSession(
            connector=connector,
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=self._config.connect_timeout_secs),
            cookie_jar=aiohttp.DummyCookieJar(),  # clients must not meet each other's cookies
            auto_decompress=False,
            skip_auto_headers=OWN_HEADERS,
        ) as self._session:
            yield

    async def post(self, url: str, query: bytes, headers: Iterable[tuple[bytes, bytes]], body: bytes) -> Answer:
        """Posts `body` to `url` and `query` (may be empty), and returns the answer once its headers are there.

        `headers`: the client's, names in lower case. Raises EngineUnreachable, EngineLost, EngineTimeout.
        """
        assert self._session is not None, "post outside running()"
        first_byte_by_s = asyncio.get_running_loop().time() + self._config.first_byte_timeout_secs
        with _failures():
            async with asyncio.timeout_at(first_byte_by_s):
                response = await self._session.post(
                    URL(f"{url}?{query.decode()}" if query else url, encoded=True),
                    headers=self._outgoing(headers),
                    data=body if len(body) < LARGE_BODY_BYTES else io.BytesIO(body),
                    allow_redirects=False,
                )
        return Answer(response, first_byte_by_s, self._config.idle_timeout_secs)

    def _outgoing(self, headers: Iterable[tuple[bytes, bytes]]) -> CIMultiDict[str]:
        """The client's headers for the engine: plain answers asked for, so that they can be read in passing."""
        outgoing = CIMultiDict(
            (name.decode("latin-1"), value.decode("utf-8", "replace")) for name, value in passing(headers)
        )
        outgoing["accept-encoding"] = "identity"
        if self._authorization:
            outgoing["authorization"] = self._authorization.decode()
        elif self._config.api_key:  # the key of this gateway is none of the engines' business
            outgoing.popall("authorization", None)
        return outgoing


def passing(headers: Iterable[tuple[bytes, bytes]]) -> Headers:
    """The end-to-end ones of `headers` (names in lower case): less HOP_BY_HOP and what `connection` names."""
    kept = list(headers)
    named = {name.strip().lower() for key, value in kept if key == b"connection" for name in value.split(b",")}
    return [(name, value) for name, value in kept if name not in HOP_BY_HOP and name not in named]


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
