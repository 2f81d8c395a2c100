"""A client's connection: uvicorn's HTTP/1.1, fit for strangers.

uvicorn and httptools (llhttp) parse and answer. What is added here holds before any key has been looked at:

- Limits (`Limits`): the size of a head, the time that a head and a body may take, requests sent ahead of their turn,
  and connections, of which there are also too many when file descriptors run out. Whoever breaks one gets an OpenAI
  error body, and the connection ends.
- Manners: an offer of another protocol (`Upgrade: h2c`) is ignored; HTTP/1.0 gets no chunks; a client that has closed
  its sending side gets its answer (`_half_closed`); and an answer to a request that is not complete is not lost to a
  reset of the connection (`_linger`).

A request costs a few comparisons more than with uvicorn alone, a chunk of an answer one.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable
from typing import Any
from urllib.parse import unquote

import httptools
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from router import descriptors
from router.core.failure_log import FailureLog
from router.errors import (
    BadMethod,
    BadRequest,
    BadVersion,
    GatewayFault,
    GatewayFull,
    HeadTooLarge,
    RequestError,
    RequestTooSlow,
)
from router.gateway import error_forms
from router.gateway.client_limits import Limits
from router.gateway.turn import Turn

log = logging.getLogger("leafcutter.gateway")

PROBE_S = (0.05, 10.0)  # the first and the longest pause between two looks at a half-closed connection
TCP_CLOSE = 7  # the state of a connection that has been reset, as TCP_INFO tells it first


class Connections:
    """All connections of one server. It is uvicorn's `http` setting: called for each new connection.

    count: gets the reason of each refusal.
    """

    def __init__(self, limits: Limits, count: Callable[[str], None]) -> None:
        self.limits, self.count = limits, count
        self.failures = FailureLog(log, lambda s, call: asyncio.get_running_loop().call_later(s, call))
        self.new: dict[ClientConnection, None] = {}
        """Those that wait for their client, for its first request or the rest of it. The longest wait comes first."""
        self.known: dict[ClientConnection, None] = {}
        """The same of those that have had an answer."""

    def longest_wait(self) -> ClientConnection:
        """The connection that makes room for another one. There must be one that waits.

        The larger group gives, so that strangers who say nothing displace each other and not the clients between two
        requests, and new clients find room beside many idle ones.
        """
        larger = self.known if len(self.known) >= len(self.new) else self.new
        return next(iter(larger))

    def __call__(self, *args: Any, **keywords: Any) -> ClientConnection:
        return ClientConnection(self, *args, **keywords)


class ClientConnection(HttpToolsProtocol):
    """One connection. `connections`: all of them."""

    def __init__(self, connections: Connections, *args: Any, **keywords: Any) -> None:
        super().__init__(*args, **keywords)
        self._connections, self._limits = connections, connections.limits
        self._group = connections.new
        """Where it is while it waits."""
        self._answering: Turn | None = None
        """The request that is being answered, or was answered last."""
        self._receiving: Turn | None = None
        """The request whose body has not come to its end."""
        self._in_head = False
        self._head_bytes = 0
        self._idle_bytes = 0
        """Bytes that have come since the last head, body byte or end of a request."""
        self._body_bytes = 0
        self._heard_s = 0.0
        """When bytes of the body have come last."""
        self._began_s = 0.0
        """When the present head or body began."""
        self._deadline: asyncio.TimerHandle | None = None
        self._refusal: RequestError | None = None
        """Why the parser was stopped."""
        self._deaf = False
        """What the client sends is dropped."""
        self._dropped_bytes = 0

    # --- the connection -----------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._group[self] = None
        self.timeout_keep_alive_task = self.loop.call_later(self.timeout_keep_alive, self.timeout_keep_alive_handler)
        scarce = not descriptors.spare()
        if scarce:
            self._connections.failures.tell("this machine", "accept", "no file descriptor is left for further clients")
        if scarce or len(self.connections) > self._limits.connections:
            self._make_room(scarce=scarce)

    def _make_room(self, *, scarce: bool) -> None:
        """Close the connection that waits longest. scarce: so few file descriptors are left that this one cannot even
        be held until its client has read why it is refused."""
        self._connections.count("connections")
        longest = self._connections.longest_wait()
        del longest._group[longest]
        if scarce or longest is not self:
            longest.transport.abort()
        else:  # all others are being answered
            self._answer_and_close(GatewayFull("The gateway has too many connections.", 1.0))

    def connection_lost(self, exc: Exception | None) -> None:
        self._group.pop(self, None)
        for turn in self._turns():
            turn.gone()
        super().connection_lost(exc)
        self._unset_keepalive_if_required()
        self._unset_deadline()

    def eof_received(self) -> bool:  # type: ignore[override]
        """The client sends nothing more. Return whether it may still get answers."""
        if self._deaf or self._receiving is not None or self.scheme == "https" or not self._turns():
            return False
        self.cycle.keep_alive = False
        self._half_closed(PROBE_S[0])
        return True

    def _half_closed(self, pause_s: float) -> None:
        """Find out whether a client that sends nothing more still reads.

        One that has left looks the same, until something is sent to it: then its host resets the connection. So bytes
        of the answer that are known already are sent ahead of the rest, one by one and with growing pauses.
        """
        turn = self._answering
        assert turn is not None
        if self.transport.is_closing():
            return
        if _tcp_state(self.transport) == TCP_CLOSE:
            self.transport.abort()
            return
        turn.probe()
        self.loop.call_later(pause_s, self._half_closed, min(2 * pause_s, PROBE_S[1]))

    def _turns(self) -> list[Turn]:
        """The requests that have no complete answer, the oldest first."""
        turns: list[Any] = [turn for turn, _ in reversed(self.pipeline)]
        if self._answering is not None and not self._answering.response_complete:
            turns.insert(0, self._answering)
        return turns

    # --- what the client sends ----------------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        if self._deaf:
            self._dropped_bytes += len(data)
            if self._dropped_bytes > self._limits.linger_bytes:
                self.transport.abort()
            return
        self._unset_keepalive_if_required()
        self._idle_bytes += len(data)
        try:
            self._feed(data)
        except httptools.HttpParserError as error:
            return self._refuse(self._refusal or _malformed(error))
        if self._idle_bytes > self._limits.head_bytes:
            return self._refuse(self._too_large())
        if self._in_head or self._receiving is not None or not self._turns():
            self._set_deadline()
        else:
            self._unset_deadline()

    def _feed(self, data: bytes) -> None:
        while data:
            try:
                return self.parser.feed_data(data)
            except httptools.HttpParserUpgrade as offer:
                data = self._head_without_offer() + data[offer.args[0] :]

    def _head_without_offer(self) -> bytes:
        """The present head without its offer to change the protocol. No other one is spoken here, so the offer is
        ignored; but httptools would take the body for bytes of that protocol, so it is given the head once more."""
        lines = [self.parser.get_method() + b" " + self.url + b" HTTP/" + self.parser.get_http_version().encode()]
        lines += [name + b": " + value for name, value in self.headers if name != b"upgrade"]
        return b"\r\n".join((*lines, b"", b""))

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._in_head, self._head_bytes, self._began_s = True, 0, self.loop.time()
        if self in self._group:  # its wait begins anew, with the request
            del self._group[self]
            self._group[self] = None

    def on_url(self, url: bytes) -> None:
        self._count_head(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._in_head:  # trailers are dropped: they must not pass for headers
            self._count_head(len(name) + len(value) + len(b": \r\n"))
            super().on_header(name, value)
            if len(self.headers) > self._limits.head_lines:
                self._stop(self._too_large())

    def _count_head(self, size: int) -> None:
        self._head_bytes += size
        if self._head_bytes > self._limits.head_bytes:
            self._stop(self._too_large())

    def on_headers_complete(self) -> None:
        version, method = self.parser.get_http_version(), self.parser.get_method().decode("ascii")
        if self.parser.should_upgrade() and method != "CONNECT":
            return  # `_head_without_offer` follows
        self._in_head, self._idle_bytes, self._body_bytes = False, 0, 0
        self._began_s = self._heard_s = self.loop.time()
        if version not in ("1.0", "1.1"):
            self._stop(BadVersion("The version of HTTP must be 1.0 or 1.1."))
        if method == "CONNECT":
            self._stop(BadMethod("CONNECT is not served."))
        if len(self.pipeline) >= self._limits.pipelined:
            self._stop(BadRequest("Too many requests were sent ahead of their turn."))
        self.scope["method"], self.scope["http_version"] = method, version
        self._read_target()
        turn = Turn(
            scope=self.scope,
            transport=self.transport,
            flow=self.flow,
            logger=self.logger,
            access_logger=self.access_logger,
            access_log=self.access_log,
            default_headers=self.server_state.default_headers,
            message_event=asyncio.Event(),
            expect_100_continue=self.expect_100_continue and version == "1.1",
            keep_alive=version == "1.1" and self.parser.should_keep_alive(),
            on_response=self.on_response_complete,
        )
        self.cycle = self._receiving = turn
        if self._answering is None or self._answering.response_complete:
            self._start_asgi_task(turn, self.app)
        else:
            self.pipeline.appendleft((turn, self.app))

    def _read_target(self) -> None:
        try:
            target = httptools.parse_url(self.url)
        except httptools.HttpParserInvalidURLError:
            return self._stop(BadRequest("The target of the request is not a valid URL."))
        raw_path = target.path or b"/"  # an absolute target may have no path
        path = raw_path.decode("ascii")
        self.scope["path"] = unquote(path) if "%" in path else path
        self.scope["raw_path"], self.scope["query_string"] = raw_path, target.query or b""

    def on_body(self, body: bytes) -> None:
        self._idle_bytes = 0
        self._body_bytes += len(body)
        self._heard_s = self.loop.time()
        super().on_body(body)

    def on_message_complete(self) -> None:
        if self._in_head:
            return  # as in `on_headers_complete`
        self._idle_bytes, self._receiving = 0, None
        self._group.pop(self, None)
        super().on_message_complete()

    # --- answers ------------------------------------------------------------------------------------------------

    def _start_asgi_task(self, cycle: Any, app: Any) -> None:
        self._answering = cycle
        super()._start_asgi_task(cycle, app)

    def on_response_complete(self) -> None:
        assert self._answering is not None
        if self._answering.early:
            self.server_state.total_requests += 1
            return self._linger()
        super().on_response_complete()
        if not (self._turns() or self.transport.is_closing()):
            self._group = self._connections.known
            self._group[self] = None

    def _stop(self, error: RequestError) -> None:
        """Stop the parser, from within it."""
        self._refusal = error
        raise error

    def _refuse(self, error: RequestError) -> None:
        """Read no further. The client gets the error, after the answers to what it asked before."""
        self._connections.count(error.code)
        log.debug("refused a client: %s", error.message)
        broken, self._receiving = self._receiving, None
        before = [turn for turn in self._turns() if turn is not broken]
        if broken is not None:
            broken.gone()
        if before:
            self._deaf = True
            self.pipeline.clear()
            self.pipeline.extend((turn, self.app) for turn in reversed(before[1:]))
            before[-1].keep_alive, before[-1].early = False, True
            self._unset_deadline()
        elif broken is not None and broken.response_started:
            self.transport.close()
        else:
            self._answer_and_close(error, "" if broken is None else broken.scope["path"])

    def _answer_and_close(self, error: RequestError, path: str = "") -> None:
        """path: what was asked for; empty: that is not known yet."""
        body = error_forms.body(error, path)
        lines = [STATUS_LINE[error.status]]
        for name, value in (
            *self.server_state.default_headers,
            *error.headers,
            (b"content-length", b"%d" % len(body)),
            (b"connection", b"close"),
        ):
            lines += [name, b": ", value, b"\r\n"]
        self.transport.write(b"".join((*lines, b"\r\n", body)))
        self._linger()

    def _linger(self) -> None:
        """End the connection, but not at once: if its client sends on, that would reset it, and an answer that the
        client has not read yet would be lost."""
        self._deaf = True
        self._unset_keepalive_if_required()
        self._unset_deadline()
        if self.transport.is_closing() or not self.transport.can_write_eof():
            return self.transport.close()
        self.transport.write_eof()
        self.flow.resume_reading()
        self._group[self] = None
        self._deadline = self.loop.call_later(self._limits.linger_s, self.transport.close)

    # --- time ---------------------------------------------------------------------------------------------------

    def _set_deadline(self) -> None:
        if self._deadline is None:
            if not self._in_head and self._receiving is None:  # what came was no request: empty lines
                self._began_s = self.loop.time()
            self._deadline = self.loop.call_later(self._limits.look_s, self._look_at_the_clock)

    def _unset_deadline(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _look_at_the_clock(self) -> None:
        turns, now_s = self._turns(), self.loop.time()
        if turns and turns[0] is not self._receiving:
            late = False  # it is not yet this request's turn
        elif self._receiving is not None:
            late = self._body_is_late(now_s)
        else:
            late = now_s - self._began_s >= self._limits.head_s
        self._deadline = None
        if late:
            self._refuse(RequestTooSlow("The request took too long to arrive."))
        else:
            self._deadline = self.loop.call_later(self._limits.look_s, self._look_at_the_clock)

    def _body_is_late(self, now_s: float) -> bool:
        if self.flow.read_paused:  # the gateway itself is in no hurry
            self._began_s = self._heard_s = now_s
            return False
        limits, took_s = self._limits, now_s - self._began_s
        too_few = self._body_bytes < limits.body_bytes_per_s * (took_s - limits.body_silence_s)
        return too_few or now_s - self._heard_s >= limits.body_silence_s

    def _too_large(self) -> HeadTooLarge:
        most = self._limits
        return HeadTooLarge(f"The head has more than {most.head_bytes} bytes or {most.head_lines} lines.")


def _malformed(error: httptools.HttpParserError) -> RequestError:
    if isinstance(error, httptools.HttpParserCallbackError):
        log.error("reading a request failed by a fault of the gateway", exc_info=error.__context__)
        return GatewayFault("The gateway failed.")
    if isinstance(error, httptools.HttpParserInvalidMethodError):
        return BadMethod("The method is not known.")
    return BadRequest(f"The request is not valid HTTP: {error}.")


def _tcp_state(transport: asyncio.Transport) -> int | None:
    """The state of the connection; None: it has none, or is closed."""
    try:
        info: bytes = transport.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)
    except (AttributeError, OSError):
        return None
    return info[0]
