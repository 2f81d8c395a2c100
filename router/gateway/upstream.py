"""Sending requests to engines over kept connections, and reading their answers as they arrive.

There are three kinds of failure, because each needs another reaction: `EngineUnreachable` (nothing was sent, so another
engine can be tried), `EngineLost` (the connection broke) and `EngineTimeout` (there was no answer in time, and another
engine would only do the work twice). The deadline of the whole request is kept by `client`. No message of an error
holds the address of an engine.
"""

from __future__ import annotations

import asyncio
import ssl
from base64 import b64encode
from collections.abc import AsyncIterator, Awaitable, Collection, Sequence
from contextlib import asynccontextmanager
from time import monotonic
from urllib.parse import unquote, urlsplit

from router import descriptors
from router.config import Config
from router.core.worker_url import split_address
from router.errors import EngineGarbled, EngineOut, EngineUnreachable, OutOfFiles
from router.gateway.body_edit import Piece
from router.gateway.engine_connection import EngineConnection
from router.gateway.headers import DATA_PARALLEL_RANK, Headers, end_to_end, for_engine
from router.gateway.tenants import own_keys
from router.tls import engine_context

# uvicorn, and so vLLM, closes idle connections after 5 s. The gateway must close them first, or a request that it sends
# at that moment is reset.
KEEP_ALIVE_S = 4.0
OUT_OF_FILES = "The gateway has no file descriptor left."


class UpstreamAnswer:
    """An engine's answer, of which the head has arrived.

    first_byte_due_s: when the first byte of the body must have arrived, on the clock of the event loop. idle_s: how
    long each later read may wait.
    """

    def __init__(
        self, connection: EngineConnection, first_byte_due_s: float, idle_s: float, connecting_s: float = 0.0
    ) -> None:
        self._connection, self._connecting_s = connection, connecting_s
        self._first_byte_due_s: float | None = first_byte_due_s
        self._idle_s = idle_s
        self._time = asyncio.get_running_loop().time
        self.status = connection.status
        self.headers: Headers = end_to_end(connection.headers)
        """The end-to-end headers, with names in lower case."""
        content_type = next((value for name, value in self.headers if name == b"content-type"), b"")
        self.streamed = self.status < 400 and content_type.partition(b";")[0].strip().lower() == b"text/event-stream"

    @property
    def waited_s(self) -> float:
        """How long the gateway has waited for the engine so far: for the connection, the head and the body."""
        return self._connecting_s + self._connection.waited_s

    def read(self) -> Awaitable[bytes]:
        """The next bytes of the body, as soon as there are any; empty at its end. Raises EngineLost, EngineTimeout."""
        due_s, self._first_byte_due_s = self._first_byte_due_s, None
        return self._connection.read(self._time() + self._idle_s if due_s is None else due_s)

    async def read_all(self) -> bytes:
        """The body, or what is left of it. Raises EngineLost, EngineTimeout."""
        chunks = []
        while chunk := await self.read():
            chunks.append(chunk)
        return chunks[0] if len(chunks) == 1 else b"".join(chunks)

    def close(self) -> None:
        """End the answer.

        If its body was not read to the end, this closes the connection, which stops the engine's work. Otherwise the
        connection is kept for other requests.
        """
        self._connection.done()


class _Engine:
    """The connections to the engine at one address. A connection is in `idle` or carries a request. tls: for https."""

    def __init__(self, address: str, connect_s: float, tls: ssl.SSLContext) -> None:
        url, rank = split_address(address)
        parts = urlsplit(url)
        assert parts.hostname is not None, "the URLs of engines are checked at the start"
        self._host, self._connect_s = parts.hostname, connect_s
        self._ssl = tls if parts.scheme == "https" else None
        self._port = parts.port or (443 if self._ssl else 80)
        self.head = b" HTTP/1.1\r\nhost: " + parts.netloc.rpartition("@")[2].encode() + b"\r\n"
        """The part of each request's head that names the engine."""
        if parts.username is not None:
            pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}".encode()
            self.head += b"authorization: Basic " + b64encode(pair) + b"\r\n"
        if rank is not None:
            self.head += DATA_PARALLEL_RANK + b": %d\r\n" % rank
        self._idle: list[EngineConnection] = []
        self._open: set[EngineConnection] = set()
        self._gone = False

    async def connection(self) -> EngineConnection:
        """A connection that carries no request. Raises EngineUnreachable, EngineOut if the engine has left, and
        OutOfFiles where only the descriptors are left that health checks need."""
        while self._idle:
            connection = self._idle.pop()
            if not (connection.closed or connection.transport.is_closing()):
                return connection
        if not descriptors.spare():
            raise OutOfFiles(OUT_OF_FILES)
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(self._connect_s):
                _, connection = await loop.create_connection(
                    lambda: EngineConnection(self._release, self._forget), self._host, self._port, ssl=self._ssl
                )
        except OSError as error:  # TimeoutError and the errors of TLS are OSErrors too
            if descriptors.exhausted(error):
                raise OutOfFiles(OUT_OF_FILES) from error.with_traceback(None)
            raise EngineUnreachable("The engine could not be reached.") from error.with_traceback(None)
        self._open.add(connection)
        if self._gone:
            connection.abort()
            raise EngineOut("The engine was taken out.")
        return connection

    def close(self) -> None:
        self._gone = True
        for connection in list(self._open):
            connection.abort()

    def give_up(self) -> None:
        for connection in list(self._open):
            connection.give_up()

    def take_heard(self) -> bool:
        """Whether a head or a part of a body has come over any connection since this was asked last."""
        heard = False
        for connection in self._open:
            heard, connection.heard = heard or connection.heard, False
        return heard

    def _release(self, connection: EngineConnection) -> None:
        self._idle.append(connection)
        connection.expire_at(asyncio.get_running_loop().time() + KEEP_ALIVE_S)

    def _forget(self, connection: EngineConnection) -> None:
        self._open.discard(connection)
        if connection in self._idle:
            self._idle.remove(connection)


class Upstream:
    """Sends requests to engines, within `running()`, which owns the connections."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._keys = config.engines.worker_api_key, own_keys(config)
        self._tls = engine_context(config.engines)
        self._engines: dict[str, _Engine] = {}

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        try:
            yield
        finally:
            for engine in self._engines.values():
                engine.close()

    def give_up(self, address: str) -> None:
        """The engine was taken out: requests to it that have not had a byte of their answer's body get EngineOut."""
        if address in self._engines:
            self._engines[address].give_up()

    def keep_only(self, addresses: Collection[str]) -> None:
        """These engines are there now: what still runs on others is cut off, by EngineOut if nothing has come of it."""
        for address in self._engines.keys() - set(addresses):
            engine = self._engines.pop(address)
            engine.give_up()
            engine.close()

    def heard(self) -> list[str]:
        """The addresses of the engines from which heads or bodies have come since this was asked last."""
        return [address for address, engine in self._engines.items() if engine.take_heard()]

    async def send(
        self,
        address: str,
        path: str,
        query: bytes,
        headers: Sequence[tuple[bytes, bytes]],
        request_id: str,
        body: Sequence[Piece],
        method: str = "POST",
        session: str | None = None,
    ) -> UpstreamAnswer:
        """Send a request with `body`, which may be in several pieces, and return the answer once its head has arrived.

        address: that of the engine (`core.worker_url`). path: what comes after its base URL. query: may be empty.
        headers: the client's, with names in lower case. session: the id of its session. Raises EngineUnreachable,
        EngineLost (EngineOut is one), EngineTimeout and OutOfFiles.
        """
        reliability = self._config.reliability
        engine = self._engines.get(address)
        if engine is None:
            engine = self._engines[address] = _Engine(address, reliability.connect_timeout_secs, self._tls)
        due_s = asyncio.get_running_loop().time() + reliability.first_byte_timeout_secs
        lines = [name + b": " + value for name, value in for_engine(headers, request_id, *self._keys, session)]
        target = path.encode() + (b"?" + query if query else b"")
        lines.append(b"content-length: %d" % sum(map(len, body)))
        head = method.encode() + b" " + target + engine.head + b"\r\n".join(lines) + b"\r\n\r\n"
        begun_s = monotonic()
        connection = await engine.connection()
        connecting_s = monotonic() - begun_s
        try:
            await connection.send(head, body, due_s)
            _check(connection.status, connection.headers)
        except BaseException:
            connection.abort()
            raise
        return UpstreamAnswer(connection, due_s, reliability.idle_timeout_secs, connecting_s)


def _check(status: int, headers: Headers) -> None:
    """Raise EngineGarbled for an answer that must not reach a client: one that sends it to another address, which would
    get its key, or a compressed one, which was not asked for and cannot be read as it passes."""
    if 300 <= status < 400:
        raise EngineGarbled(f"The engine answered {status} and points elsewhere.")
    for name, value in headers:
        if name == b"content-encoding" and value.strip().lower() not in (b"", b"identity"):
            raise EngineGarbled("The engine compressed its answer, which was not asked for.")
