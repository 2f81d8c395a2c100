"""An edge: one of the processes that serve clients. It reads, forwards and relays; the router process decides."""

from __future__ import annotations

import asyncio
import secrets
import socket
import time
from typing import Any

from prometheus_client import CollectorRegistry

from router.config import Config
from router.gateway.body_reader import BodyReader
from router.gateway.client import Message, Receive, Scope, Send
from router.gateway.front import App, Application
from router.gateway.handler import Gateway
from router.gateway.metrics import Metrics
from router.gateway.server import QuietServer, beside, cut_off_stuck, server_config, tended
from router.gateway.signs_of_life import tell_signs_of_life
from router.gateway.upstream import Upstream
from router.processes.acceptor import Acceptor, ConnectionCounts
from router.processes.control import RETIRE, STOP, Control, first_of
from router.processes.edge_rest import EdgeRest
from router.processes.remote_decider import RemoteDecider

DRAIN_POLL_S = 0.05


async def run(control: Control) -> None:
    """Serve clients until the supervisor says STOP, or RETIRE and all connections are done."""
    orders = control.orders
    config, clock = orders.config, time.monotonic
    decider = RemoteDecider(orders.decisions, orders.name, clock)
    upstream, body_reader = Upstream(config), BodyReader()
    decider.on_out = lambda engine: upstream.give_up(decider.addresses[engine])
    decider.on_fleet = upstream.keep_only
    rest = EdgeRest(config, orders.rest, decider)
    gateway = Gateway(
        config,
        decider,
        decider.addresses,
        upstream,
        body_reader,
        Metrics(CollectorRegistry()),
        trace_writer=decider if config.recording.record is not None else None,
        clock=clock,
        new_id=lambda: secrets.token_hex(16),
    )
    server = EdgeServer(config, App(config, gateway, rest), ConnectionCounts(orders.connections), orders.slot)
    listening = asyncio.create_task(control.listen({STOP: lambda _: server.stop(), RETIRE: lambda _: server.retire()}))
    async with decider.running(), upstream.running(), body_reader.running(), rest.running():
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


class EdgeServer(QuietServer):
    """uvicorn with a way to end that no client notices."""

    def __init__(self, config: Config, app: Application, counts: ConnectionCounts, slot: int) -> None:
        self._app = _LastAnswers(app)
        super().__init__(server_config(config, self._app, lifespan="off"))
        self._grace_s = config.server.shutdown_grace_period_secs
        self._counts, self._slot = counts, slot
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
        await asyncio.gather(*self._opening)
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

        task = loop.create_task(loop.connect_accepted_socket(create_protocol, connection))
        self._opening.add(task)
        task.add_done_callback(self._opening.discard)

    def stop(self) -> None:
        """Take no new connections, close the idle ones, and give running requests the grace to finish."""
        self.should_exit = True
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
