"""An edge: one of the processes that serve clients. It reads, forwards and relays; the router process decides."""

from __future__ import annotations

import asyncio
import secrets
import socket
import time
from contextlib import AsyncExitStack
from dataclasses import replace
from typing import Any

from prometheus_client import CollectorRegistry

from router.config import Config
from router.gateway.access import Access
from router.gateway.beside import beside
from router.gateway.body_reader import BodyReader
from router.gateway.client import Message, Receive, Scope, Send
from router.gateway.front import App, Application
from router.gateway.handler import Gateway
from router.gateway.key_limits import SharedLimits
from router.gateway.metrics import Metrics
from router.gateway.server import ClientServer, cut_off_stuck, tended
from router.gateway.server_tls import ServerTls
from router.gateway.signs_of_life import tell_signs_of_life
from router.gateway.upstream import Upstream
from router.gateway.usage_log import UsageLog
from router.processes.acceptor import Acceptor, ConnectionCounts
from router.processes.control import HURRY, LEAVE, RETIRE, STOP, Control, first_of
from router.processes.edge_rest import EdgeRest
from router.processes.remote_decider import RemoteDecider

DRAIN_POLL_S = 0.05
HANDSHAKE_S = 10.0  # a client has so long to agree on TLS


async def run(control: Control) -> None:
    """Serve clients until the supervisor says STOP, or RETIRE and all connections are done."""
    orders = control.orders
    config, clock = share(orders.config, orders.slot, orders.edges), time.monotonic
    decider = RemoteDecider(orders.decisions, orders.name, clock)
    upstream, body_reader = Upstream(config), BodyReader()
    decider.on_out = lambda engine: upstream.give_up(decider.addresses[engine])
    decider.on_fleet = upstream.keep_only
    rest, access = EdgeRest(config, orders.rest, decider), Access.of_copy(config.server, orders.keys)
    tls, usage_log = ServerTls.of(config.server), UsageLog.of(config.recording, time.time)
    gateway = Gateway(
        config,
        decider,
        decider.addresses,
        upstream,
        body_reader,
        Metrics(CollectorRegistry()),
        trace_writer=decider if config.recording.record is not None else None,
        limits=SharedLimits(clock, orders.limits, orders.lane),
        usage_log=usage_log,
        clock=clock,
        new_id=lambda: secrets.token_hex(16),
    )
    app = App(config, gateway, rest, access)
    server = EdgeServer(config, app, ConnectionCounts(orders.connections), orders.slot, tls)
    verbs = {LEAVE: server.leave, STOP: server.stop, HURRY: server.hurry, RETIRE: server.retire}
    listening = asyncio.create_task(control.listen({word: lambda _, do=do: do() for word, do in verbs.items()}))  # type: ignore[misc]
    async with AsyncExitStack() as stack:
        for each in (decider, upstream, body_reader, rest, access, *([tls] if tls else ())):
            await stack.enter_async_context(each.running())
        if usage_log is not None:
            stack.enter_context(usage_log.running())
        with (
            tended(lambda: decider.idle),
            beside(cut_off_stuck(server.server_state.connections)),
            beside(tell_signs_of_life(upstream, decider, decider.addresses)),
        ):
            await first_of(decider.known.wait(), server.stopped.wait())
            if not server.should_exit:
                sockets = [socket.socket(fileno=descriptor) for descriptor in orders.listeners]
                serving = asyncio.create_task(server.serve(sockets))
                await first_of(server.listening.wait(), asyncio.shield(serving))
                control.say_ready()
                await serving
    listening.cancel()


def share(config: Config, slot: int, edges: int) -> Config:
    """The options of one edge. The limits that hold for the whole gateway are divided among its edges, so that their
    sum holds; each edge has at least one place and one connection. slot: which of them it is."""
    server = config.server

    def part(whole: int) -> int:
        return whole // edges + (slot < whole % edges)

    divided = replace(
        server,
        max_connections=max(1, part(server.max_connections)),
        max_concurrent_requests=max(1, part(server.max_concurrent_requests)),
        queue_size=part(server.queue_size),
    )
    return replace(config, server=divided)


class EdgeServer(ClientServer):
    """A server with a way to end that no client notices."""

    def __init__(
        self, config: Config, app: App, counts: ConnectionCounts, slot: int, tls: ServerTls | None = None
    ) -> None:
        self._app = _LastAnswers(app)
        super().__init__(config, app, wrapped=self._app, lifespan="off")
        self._counts, self._slot = counts, slot
        self._tls = None if tls is None else tls.context
        self._acceptor: Acceptor | None = None
        self._opening: set[asyncio.Task[object]] = set()
        """The connections that were taken and are not among uvicorn's yet."""
        self._retiring: asyncio.Task[None] | None = None
        self.stopped = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen. uvicorn itself would take as many connections as there are, and leave none to the other edges."""
        assert sockets is not None
        await self.lifespan.startup()
        self.servers = []
        self._acceptor = Acceptor(self._counts, self._slot, self._connections, self._serve_connection)
        self._acceptor.start(sockets)
        self.started = True
        self.listening.set()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        assert self._acceptor is not None
        self._acceptor.close()
        await asyncio.gather(*self._opening, return_exceptions=True)
        await super().shutdown(sockets)

    def _connections(self) -> int:
        return len(self.server_state.connections) + len(self._opening)

    def _serve_connection(self, connection: socket.socket) -> None:
        loop = asyncio.get_running_loop()

        def create_protocol() -> asyncio.Protocol:
            create: Any = self.config.http_protocol_class
            protocol: asyncio.Protocol = create(
                config=self.config, server_state=self.server_state, app_state=self.lifespan.state
            )
            return protocol

        timeout = {} if self._tls is None else {"ssl_handshake_timeout": HANDSHAKE_S}
        opening = loop.connect_accepted_socket(create_protocol, connection, ssl=self._tls, **timeout)
        task = loop.create_task(opening)
        self._opening.add(task)
        task.add_done_callback(self._opened)

    def _opened(self, task: asyncio.Task[object]) -> None:
        self._opening.discard(task)
        if not task.cancelled():
            task.exception()  # a client that fails to agree on TLS is nobody's fault here

    def stop(self) -> None:
        super().stop()
        self.stopped.set()

    def retire(self) -> None:
        """Take no new connections, and end when all present ones are done.

        A connection is done after its next answer, which tells the client that it closes. Nothing is closed while it
        waits for a request, because the request may be on its way: only after the grace are idle connections closed.
        Running requests have all the time that they need.
        """
        if self._retiring is None:
            self._retiring = asyncio.create_task(self._retire())

    async def _retire(self) -> None:
        if not self.started:
            return self.stop()
        assert self._acceptor is not None
        self._acceptor.close()
        self._app.last = True
        deadline_s = time.monotonic() + self._grace_s
        while self._connections():
            await asyncio.sleep(DRAIN_POLL_S)
            if time.monotonic() > deadline_s:
                for connection in list(self.server_state.connections):
                    connection.shutdown()  # at once if it is idle, else after its answer
        self.stop()


class _LastAnswers:
    """An application, each of whose answers closes its connection once `last` is set."""

    def __init__(self, app: Application) -> None:
        self._app = app
        self.last = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if not self.last:
            return await self._app(scope, receive, send)

        async def send_last(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message["headers"], (b"connection", b"close")]}
            await send(message)

        await self._app(scope, receive, send_last)
