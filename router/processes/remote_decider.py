"""The edge's end of the protocol: the `Decider` that asks the router process, and decides itself while that is away.

While the router process is away, a request goes to the engine with the fewest requests of this edge in flight, among
those that were healthy when the router process was last heard. Once it is back, it is told of all that runs.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import NoReturn

from router.core.worker_url import check_address
from router.errors import BadRequest, ConfigError, GatewayFault, NoEngine, NotFound, RequestError
from router.gateway.apis.base import BYTES_PER_TOKEN
from router.gateway.trace_writer import summarize
from router.processes import protocol
from router.processes.link import Link
from router.processes.messages import pack_line, pack_outcome, pack_request
from router.processes.protocol import ProtocolError, unpack_text
from router.types import Ending, EngineId, Outcome, ParsedRequest, Placement

log = logging.getLogger("leafcutter.processes")
RECONNECT_S = 0.05  # the time between two tries to reach the router process
PATIENCE_S = 2.0  # a router process that leaves a question open for so long is taken to be away
FALLBACK, AWAY = "least_loaded", "router_away"
ERRORS: Mapping[str, type[RequestError]] = {each.code: each for each in (BadRequest, NotFound, NoEngine)}


@dataclass(slots=True)
class RemotePlacement:
    """A `Placement`. `booking` is the serial of the protocol."""

    request: ParsedRequest
    engine: EngineId
    policy: str
    reason: str
    fallback: str | None
    predicted_s: float | None
    prompt_tokens: float
    booking: int
    dispatched_s: float
    conversation: str | None = None
    held_s: float = 0.0
    first_token_s: float | None = None


@dataclass(slots=True)
class _Question:
    """A request whose placement is not known yet."""

    request: ParsedRequest
    tried: Sequence[EngineId]
    asked_s: float
    answer: asyncio.Future[RemotePlacement]
    held_s: float = 0.0
    """The router process has said that the answer may take so long."""


class RemoteDecider:
    """The `Decider` of one edge. path: the Unix socket of the router process, which tells what engines there are. name:
    of this edge. clock: monotonic, seconds."""

    def __init__(self, path: str, name: str, clock: Callable[[], float]) -> None:
        self._path, self._name, self._clock = path, name, clock
        self._serial = 0
        self._link: Link[protocol.FromRouter] | None = None
        """None while the router process is away."""
        self._questions: dict[int, _Question] = {}
        self._open: dict[int, RemotePlacement] = {}
        self.addresses: dict[EngineId, str] = {}
        """The address of every engine, and of those that have left with requests of this edge open."""
        self._in_flight: dict[EngineId, int] = {}
        """The requests of this edge that are open on each of them."""
        self._present: Collection[EngineId] = ()
        """The engines of the fleet."""
        self._policy = ""
        self._ready: dict[EngineId, frozenset[str]] = {}
        """The engines that may get requests, as far as is known, each with its models."""
        self._records = False
        self._arrivals: set[int] = set()
        """The requests that the router process's recording waits for."""
        self.on_out: Callable[[EngineId], None] = lambda _: None
        """Called when an engine was taken out, and its requests shall be moved."""
        self.on_fleet: Callable[[Collection[str]], None] = lambda _: None
        """Called with the addresses of all engines that there are now, whenever that may have changed."""
        self.known = asyncio.Event()
        """The router process has been heard once."""

    @property
    def idle(self) -> bool:
        return not (self._open or self._questions)

    @property
    def connected(self) -> bool:
        """Whether the router process decides."""
        return self._link is not None

    @property
    def engines(self) -> tuple[int, int]:
        """How many engines may get requests, and how many there are, as far as is known."""
        return len(self._ready), len(self._present)

    # --- the decider --------------------------------------------------------------------------------------------

    async def route(self, request: ParsedRequest, exclude: Sequence[EngineId]) -> RemotePlacement:
        self._serial += 1
        serial = self._serial
        if self._link is None:
            return self._fall_back(serial, request, exclude)
        try:
            self._link.send(protocol.Route(serial, pack_request(request), list(exclude)))
        except ProtocolError:
            raise BadRequest("The names in the request are too long.") from None
        answer: asyncio.Future[RemotePlacement] = asyncio.get_running_loop().create_future()
        self._questions[serial] = _Question(request, tuple(exclude), self._clock(), answer)
        try:
            return await answer
        except asyncio.CancelledError:  # the placement may have come or be on its way: in any case it is given back
            self._questions.pop(serial, None)
            self.complete(serial, Outcome(Ending.CANCELLED, self._clock()))
            raise

    def first_token(self, booking: int, now_s: float) -> None:
        self._open[booking].first_token_s = now_s
        if self._link is not None:
            self._link.send(protocol.FirstToken(booking, now_s))

    def complete(self, booking: int, outcome: Outcome) -> None:
        placement = self._open.pop(booking, None)
        whole = True
        if placement is not None:
            self._in_flight[placement.engine] -= 1
            self._forget_if_gone(placement.engine)
            whole = len(placement.request.prompt.keys) <= protocol.MOST_KEYS
        if self._link is not None:
            self._link.send(pack_outcome(booking, outcome, whole=whole))

    def unreachable(self, engine: EngineId) -> None:
        self._ready.pop(engine, None)
        if self._link is not None:
            self._link.send(protocol.Unreachable(engine))

    def heard(self, engine: EngineId) -> None:
        if self._link is not None:
            self._link.send(protocol.Heard(engine))

    # --- the recording ------------------------------------------------------------------------------------------

    def arrived(self, now: float) -> int:
        self._serial += 1
        if self._records and self._link is not None:
            self._arrivals.add(self._serial)
            self._link.send(protocol.Arrived(self._serial, now))
        return self._serial

    def ended(self, number: int, arrival_s: float, decision: Placement | None, outcome: Outcome | None) -> None:
        if number in self._arrivals and self._link is not None:
            self._arrivals.discard(number)
            line = summarize(arrival_s, decision, outcome) if decision and outcome else None
            self._link.send(protocol.Ended(number, None if line is None else pack_line(line)))

    # --- while the router process is away -----------------------------------------------------------------------

    def _fall_back(self, serial: int, request: ParsedRequest, exclude: Sequence[EngineId]) -> RemotePlacement:
        """Place a request by what this edge knows. Raises NoEngine."""
        engines = [
            engine
            for engine, models in self._ready.items()
            if engine not in exclude and (not request.model or not models or request.model in models)
        ]
        if not engines:
            raise NoEngine("No engine can take the request at the moment.")
        begin = serial % len(engines)  # ties go round, or all edges would choose the same engine
        prompt = request.prompt
        return self._placed(
            RemotePlacement(
                request,
                min(engines[begin:] + engines[:begin], key=self._in_flight.__getitem__),
                self._policy,
                AWAY,
                FALLBACK,
                None,
                float(prompt.units) if prompt.in_tokens else prompt.units / BYTES_PER_TOKEN,
                serial,
                self._clock(),
            )
        )

    def _placed(self, placement: RemotePlacement) -> RemotePlacement:
        self._open[placement.booking] = placement
        self._in_flight[placement.engine] += 1
        return placement

    # --- the connection -----------------------------------------------------------------------------------------

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Keep the connection. At the end, all that was told has been sent."""
        keeping = asyncio.create_task(self._keep_connected())
        try:
            yield
        finally:
            link, self._link = self._link, None
            if link is not None:
                link.close()
            keeping.cancel()
            with suppress(asyncio.CancelledError):
                await keeping

    async def _keep_connected(self) -> NoReturn:
        loop = asyncio.get_running_loop()
        while True:
            lost = asyncio.Event()
            link: Link[protocol.FromRouter] = Link(protocol.from_router)
            link.peer, link.receive, link.lost = "the router process", self._welcomed(link), lost.set
            with suppress(OSError):
                await loop.create_unix_connection(lambda link=link: link, self._path)  # type: ignore[misc]
                link.send(protocol.Hello(protocol.VERSION, self._name))
                try:
                    await self._until_lost(link, lost)
                finally:
                    link.close()
                    self._away()
            await asyncio.sleep(RECONNECT_S)

    async def _until_lost(self, link: Link[protocol.FromRouter], lost: asyncio.Event) -> None:
        while not lost.is_set():
            with suppress(TimeoutError):
                async with asyncio.timeout(PATIENCE_S / 4):
                    await lost.wait()
            due_s = min((each.asked_s + each.held_s for each in self._questions.values()), default=math.inf)
            if self._clock() - due_s > PATIENCE_S and not lost.is_set():
                link.cut(f"it has not answered for {PATIENCE_S:g} s")
                return

    def _away(self) -> None:
        """The connection has ended: decide what is asked."""
        if self._link is None:
            return
        log.warning("the router process is away: deciding by %s", FALLBACK)
        self._link = None
        self._arrivals.clear()
        questions, self._questions = self._questions, {}
        for serial, question in questions.items():
            if not question.answer.done():
                try:
                    question.answer.set_result(self._fall_back(serial, question.request, question.tried))
                except NoEngine as error:
                    question.answer.set_exception(error)

    def _welcomed(self, link: Link[protocol.FromRouter]) -> Callable[[protocol.FromRouter], None]:
        def greet(message: protocol.FromRouter) -> None:
            if not isinstance(message, protocol.Welcome):
                raise ProtocolError(f"{type(message).__name__} before Welcome")
            if message.version != protocol.VERSION:
                raise ProtocolError(f"version {message.version} of the protocol, {protocol.VERSION} was expected")
            self._records = message.records
            link.receive = take

        def take(message: protocol.FromRouter) -> None:
            if isinstance(message, protocol.Placed):
                self._answer(message)
            elif isinstance(message, protocol.Refused):
                self._refused(message)
            elif isinstance(message, protocol.Held):
                if (question := self._questions.get(message.serial)) is not None:
                    question.held_s = message.longest_s
            elif isinstance(message, protocol.Fleet):
                self._learn(message)
                if self._link is None:
                    self._back(link)
            elif isinstance(message, protocol.Out):
                engine = EngineId(message.engine)
                if engine in self._in_flight:
                    self.on_out(engine)

        return greet

    def _learn(self, fleet: protocol.Fleet) -> None:
        engines = {EngineId(each.engine): each for each in fleet.engines}
        if len(engines) < len(fleet.engines):
            raise ProtocolError("a fleet that has an engine twice")
        for each in fleet.engines:
            try:
                check_address(each.address)
            except ConfigError:
                raise ProtocolError(f"{each.engine} at {each.address[:64]!r}, which is no address") from None
        self._policy, self._present = fleet.policy, engines.keys()
        self._ready = {engine: frozenset(each.models) for engine, each in engines.items() if each.ready}
        for engine, each in engines.items():
            self.addresses[engine] = each.address
            self._in_flight.setdefault(engine, 0)
        for engine in list(self.addresses):
            self._forget_if_gone(engine)
        self.on_fleet([each.address for each in fleet.engines])

    def _forget_if_gone(self, engine: EngineId) -> None:
        """Forget an engine that has left, when no request is open on it."""
        if engine not in self._present and not self._in_flight[engine]:
            del self.addresses[engine], self._in_flight[engine]

    def _back(self, link: Link[protocol.FromRouter]) -> None:
        """The router process is there: tell it of all that runs, and ask it from now on."""
        if self.known.is_set():
            log.info("the router process is back, %d requests resumed", len(self._open))
        self._link = link
        for serial, placement in self._open.items():
            link.send(
                protocol.Resume(
                    serial,
                    pack_request(placement.request),
                    placement.engine,
                    placement.policy,
                    placement.reason,
                    placement.fallback,
                    placement.dispatched_s,
                    placement.first_token_s,
                )
            )
        self.known.set()

    def _answer(self, message: protocol.Placed) -> None:
        question = self._questions.pop(message.serial, None)
        if question is None:
            return
        engine = EngineId(message.engine)
        if engine not in self._in_flight:
            raise ProtocolError(f"a placement on an unknown engine {message.engine[:64]!r}")
        placement = RemotePlacement(
            question.request,
            engine,
            message.policy,
            message.reason,
            message.fallback,
            message.predicted_s,
            message.prompt_tokens,
            message.serial,
            message.dispatched_s,
            message.conversation,
            message.held_s,
        )
        if not question.answer.done():  # else its client has left, and the task is about to notice
            question.answer.set_result(self._placed(placement))

    def _refused(self, message: protocol.Refused) -> None:
        question = self._questions.pop(message.serial, None)
        if question is not None and not question.answer.done():
            error = ERRORS.get(message.code, GatewayFault)
            question.answer.set_exception(error(unpack_text(message.message), param=message.param))
