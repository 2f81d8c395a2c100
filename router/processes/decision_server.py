"""The router process's end of the protocol: it asks `core.Router` for the edges and keeps what they have open.

Whatever an edge has open when its connection ends is completed as cancelled, so a dead edge leaves no load behind.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any, NoReturn

from router.core.router import Router
from router.errors import GatewayFault, RequestError
from router.gateway.decider import Waiting, explain
from router.gateway.trace_writer import TraceWriter
from router.processes import protocol
from router.processes.link import Link
from router.processes.messages import unpack_line, unpack_outcome, unpack_request, within
from router.processes.protocol import ProtocolError, pack_text
from router.types import Decision, Ending, EngineId, Outcome, ParsedRequest

log = logging.getLogger("leafcutter.processes")
WATCH_S = 0.1  # the time between two looks for a change of the fleet


class DecisionServer:
    """All edges of one router. addresses: of the engines in its fleet. recording: takes the requests that they tell of;
    None: it is off. clock: monotonic, seconds."""

    def __init__(
        self,
        router: Router,
        addresses: Mapping[EngineId, str],
        clock: Callable[[], float],
        recording: TraceWriter | None = None,
    ) -> None:
        self.router, self.addresses, self.clock, self.recording = router, addresses, clock, recording
        self.edges: set[Edge] = set()
        """The edges that have greeted and are connected."""
        self.last_arrival_s = clock()
        """Arrivals are recorded in the order in which they are told, so their times never fall."""
        self.fleet = self._look()
        router.on_out = self.tell_out

    @asynccontextmanager
    async def running(self, path: str) -> AsyncIterator[None]:
        """Serve the edges that connect to the Unix socket `path`."""
        loop = asyncio.get_running_loop()
        listening = await loop.create_unix_server(lambda: Edge(self).link, path)
        watching = asyncio.create_task(self._watch())
        try:
            yield
        finally:
            watching.cancel()
            listening.close()
            for edge in list(self.edges):
                edge.link.close()

    async def _watch(self) -> NoReturn:
        while True:
            await asyncio.sleep(WATCH_S)
            self.tell_fleet()

    def tell_fleet(self) -> None:
        """Tell all edges of the fleet if it has changed."""
        fleet = self._look()
        if fleet != self.fleet:
            self.fleet = fleet
            for edge in self.edges:
                edge.link.send(fleet)

    def tell_out(self, engine: EngineId) -> None:
        """Tell all edges that the engine was taken out, as `Router.on_out` does."""
        self.tell_fleet()
        for edge in self.edges:
            edge.link.send(protocol.Out(engine))

    def _look(self) -> protocol.Fleet:
        status = self.router.status()
        engines = [
            protocol.Engine(name, self.addresses[name], each.ready, list(each.info.models))
            for name, each in status.engines.items()
        ]
        return protocol.Fleet(status.policy, engines)


class Edge:
    """One edge, from the beginning of its connection to the end."""

    def __init__(self, server: DecisionServer) -> None:
        self._server, self._router, self._clock = server, server.router, server.clock
        self._open: dict[int, Decision] = {}
        """By the serials of the edge."""
        self._held: dict[int, Waiting] = {}
        """The requests that wait before they are placed, likewise."""
        self._arrivals: dict[int, tuple[int, float]] = {}
        """The requests that the recording waits for: their numbers there and their times, by the edge's numbers."""
        self._verbs: dict[type[Any], Callable[[Any], None]] = {
            protocol.Route: self._route,
            protocol.FirstToken: self._first_token,
            protocol.Complete: self._complete,
            protocol.Unreachable: self._unreachable,
            protocol.Heard: self._heard,
            protocol.Resume: self._resume,
            protocol.Arrived: self._arrived,
            protocol.Ended: self._ended,
        }
        self.link: Link[protocol.FromEdge] = Link(protocol.from_edge)
        self.link.receive, self.link.lost = self._greet, self._gone

    def _greet(self, message: protocol.FromEdge) -> None:
        if not isinstance(message, protocol.Hello):
            raise ProtocolError(f"{type(message).__name__} before Hello")
        self.link.peer = message.name[:64]
        if message.version != protocol.VERSION:
            raise ProtocolError(f"version {message.version} of the protocol, {protocol.VERSION} was expected")
        self.link.receive = self._take
        self._server.edges.add(self)
        self.link.send(protocol.Welcome(protocol.VERSION, self._server.recording is not None))
        self.link.send(self._server.fleet)

    def _take(self, message: protocol.FromEdge) -> None:
        verb = self._verbs.get(type(message))
        if verb is None:
            raise ProtocolError("a second Hello")
        try:
            verb(message)
        except ProtocolError:
            raise
        except Exception:  # a fault of ours in one request must not end the others
            log.exception("%s of %s failed", type(message).__name__, self.link.peer)

    def _gone(self) -> None:
        self._server.edges.discard(self)
        if self._open:
            log.info("%s has left with %d requests open", self.link.peer, len(self._open))
        cancelled = Outcome(Ending.CANCELLED, self._clock())
        for waiting in self._held.values():
            waiting.withdraw()
        self._held.clear()
        for decision in self._open.values():
            self._router.complete(decision, cancelled)
        self._open.clear()
        if self._server.recording is not None:
            for number, _ in self._arrivals.values():
                self._server.recording.add(number, None)

    # --- requests -----------------------------------------------------------------------------------------------

    def _route(self, message: protocol.Route) -> None:
        self._check_new(message.serial)
        request, tried = unpack_request(message.request), tuple(map(EngineId, message.tried))
        try:
            if not tried and (waiting := Waiting.begin(self._router, request, self._clock)):
                return self._wait(message.serial, request, waiting)
            decision = self._router.route(request, self._clock(), exclude=tried)
        except Exception as error:
            return self._fail(message.serial, request, error)
        self._placed(message.serial, decision)

    def _wait(self, serial: int, request: ParsedRequest, waiting: Waiting) -> None:
        self._held[serial] = waiting
        self.link.send(protocol.Held(serial, self._router.holding.longest_s))

        def end(placed: asyncio.Future[Decision]) -> None:
            if self._held.pop(serial, None) is None:
                return  # nobody waits for it any more
            if (error := placed.exception()) is not None:
                self._fail(serial, request, error)
            else:
                self._placed(serial, placed.result())

        waiting.placed.add_done_callback(end)

    def _fail(self, serial: int, request: ParsedRequest, error: BaseException) -> None:
        if isinstance(error, RequestError):
            return self._refuse(serial, error)
        log.error("request %s could not be placed", request.request_id, exc_info=error)
        self._refuse(serial, GatewayFault("The gateway failed."))

    def _placed(self, serial: int, decision: Decision) -> None:
        self._open[serial] = decision
        request = decision.request
        if log.isEnabledFor(logging.DEBUG):
            log.debug("request %s to %s (%s)", request.request_id, decision.engine, explain(decision))
        self.link.send(
            protocol.Placed(
                serial,
                decision.engine,
                decision.policy,
                decision.reason,
                decision.fallback,
                decision.predicted_s,
                decision.prompt_tokens,
                decision.dispatched_s,
                decision.conversation,
                decision.held_s,
            )
        )

    def _refuse(self, serial: int, error: RequestError) -> None:
        self.link.send(protocol.Refused(serial, error.code, pack_text(error.message), error.param))

    def _first_token(self, message: protocol.FirstToken) -> None:
        decision = self._open.get(message.serial)
        if decision is not None:
            self._router.first_token(decision, within(message.at_s, decision.dispatched_s, self._clock()))

    def _complete(self, message: protocol.Complete) -> None:
        if (waiting := self._held.pop(message.serial, None)) is not None:
            return waiting.withdraw()
        decision = self._open.pop(message.serial, None)
        if decision is not None:
            self._router.complete(decision, unpack_outcome(message, decision.dispatched_s, self._clock()))

    def _unreachable(self, message: protocol.Unreachable) -> None:
        engine = EngineId(message.engine)
        if engine in self._router:
            self._router.set_health(engine, False)
            self._server.tell_fleet()

    def _heard(self, message: protocol.Heard) -> None:
        self._router.heard(EngineId(message.engine), self._clock())

    def _resume(self, message: protocol.Resume) -> None:
        self._check_new(message.serial)
        engine, now = EngineId(message.engine), self._clock()
        if engine not in self._router:  # it has left, and the edge is about to cut off what runs there
            return
        dispatched_s, first_s = within(message.dispatched_s, 0.0, now), message.first_token_s
        self._open[message.serial] = self._router.resume(
            unpack_request(message.request),
            engine,
            policy=message.policy,
            reason=message.reason,
            fallback=message.fallback,
            dispatched_s=dispatched_s,
            first_token_s=None if first_s is None else within(first_s, dispatched_s, now),
        )

    def _check_new(self, serial: int) -> None:
        if serial in self._open or serial in self._held:
            raise ProtocolError(f"serial {serial} is in use")

    # --- the recording ------------------------------------------------------------------------------------------

    def _arrived(self, message: protocol.Arrived) -> None:
        server = self._server
        if server.recording is None:
            return
        if message.number in self._arrivals:
            raise ProtocolError(f"number {message.number} is in use")
        server.last_arrival_s = at_s = within(message.at_s, server.last_arrival_s, self._clock())
        self._arrivals[message.number] = server.recording.arrived(at_s), at_s

    def _ended(self, message: protocol.Ended) -> None:
        known = self._arrivals.pop(message.number, None)
        if self._server.recording is not None and known is not None:
            number, arrival_s = known
            line = None
            try:
                if message.line is not None:
                    line = unpack_line(message.line, arrival_s, self._clock())
            finally:
                self._server.recording.add(number, line)
