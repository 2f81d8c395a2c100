"""Who decides for the data path: the router in this process, or one that several processes share.

`Decider` is all that the data path needs of a router. `LocalDecider` asks the router directly.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import Protocol

from router.core.holding import Held
from router.core.router import Router
from router.types import Decision, Ending, EngineId, Outcome, ParsedRequest, Placement, Unit

log = logging.getLogger("leafcutter.gateway")


class Decider(Protocol):
    """Places requests and takes in what became of them. Times are monotonic, in seconds."""

    async def route(self, request: ParsedRequest, exclude: Sequence[EngineId]) -> Placement:
        """Choose an engine and book the request's load on it, which may have to wait (`core.holding`).

        exclude: the engines that have been tried already. If it is cancelled, nothing is booked. Raises NotFound and
        NoEngine, as `Router.route` does.
        """
        ...

    def first_token(self, booking: int, now_s: float) -> None:
        """The first token of a streamed answer was seen."""
        ...

    def complete(self, booking: int, outcome: Outcome) -> None:
        """The try is over: its load is released. Every placement must be completed exactly once."""
        ...

    def unreachable(self, engine: EngineId) -> None:
        """The engine refused a connection: it gets no requests until a health check passes."""
        ...

    def heard(self, engine: EngineId) -> None:
        """Bytes of some answer have come from the engine within the last second."""
        ...


class LocalDecider:
    """The `Decider` that is a router in this process. clock: monotonic, seconds."""

    def __init__(self, router: Router, clock: Callable[[], float]) -> None:
        self._router, self._clock = router, clock
        self._open: dict[int, Decision] = {}  # by booking

    async def route(self, request: ParsedRequest, exclude: Sequence[EngineId]) -> Decision:
        if not exclude and (waiting := Waiting.begin(self._router, request, self._clock)):
            return self._opened(await waiting.decision())
        return self._opened(self._router.route(request, self._clock(), exclude=exclude))

    def _opened(self, decision: Decision) -> Decision:
        request = decision.request
        self._open[decision.booking] = decision
        if log.isEnabledFor(logging.DEBUG):
            log.debug("request %s to %s (%s)", request.request_id, decision.engine, explain(decision))
        return decision

    def first_token(self, booking: int, now_s: float) -> None:
        self._router.first_token(self._open[booking], now_s)

    def complete(self, booking: int, outcome: Outcome) -> None:
        self._router.complete(self._open.pop(booking), outcome)

    def unreachable(self, engine: EngineId) -> None:
        if engine in self._router:  # it may have left meanwhile
            self._router.set_health(engine, False)

    def heard(self, engine: EngineId) -> None:
        self._router.heard(engine, self._clock())


class Waiting:
    """A request that is held, on the running event loop. It is placed in the very moment in which it may go on, so that
    the next one that waits sees its load."""

    def __init__(self, router: Router, request: ParsedRequest, clock: Callable[[], float]) -> None:
        self._router, self._request, self._clock = router, request, clock
        self._held: Held
        self._timer: asyncio.TimerHandle
        self.placed: asyncio.Future[Decision]
        """What `Router.route` gives or raises."""

    @classmethod
    def begin(cls, router: Router, request: ParsedRequest, clock: Callable[[], float]) -> Waiting | None:
        """Hold the request if it must wait; None: it need not."""
        waiting, now = cls(router, request, clock), clock()
        held = router.hold(request, now, waiting._go)
        if held is None:
            return None
        loop = asyncio.get_running_loop()
        waiting._held, waiting.placed = held, loop.create_future()
        waiting._timer = loop.call_later(held.until_s - now, waiting._time_is_up)
        return waiting

    async def decision(self) -> Decision:
        """The decision, once there is one. If this is cancelled, nothing stays booked."""
        try:
            return await self.placed
        except asyncio.CancelledError:
            self.withdraw()
            raise

    def withdraw(self) -> None:
        """Nobody waits for the decision any more."""
        self._timer.cancel()
        now, placed = self._clock(), self.placed
        self._router.holding.withdraw(self._held, now)
        if placed.done() and not placed.cancelled() and placed.exception() is None:
            self._router.complete(placed.result(), Outcome(Ending.CANCELLED, now))

    def _time_is_up(self) -> None:
        # A timer may be early by the resolution of its clock.
        self._router.holding.let_in(max(self._clock(), self._held.until_s))

    def _go(self) -> None:
        self._timer.cancel()
        if self.placed.done():  # its client has just left
            return
        now = self._clock()
        try:
            decision = self._router.route(self._request, now, held_s=now - self._held.since_s)
        except Exception as error:  # it belongs to whoever waits, not to the request that has just ended
            self.placed.set_exception(error)
        else:
            self.placed.set_result(decision)


def explain(decision: Decision) -> str:
    """Why this engine was chosen, in one line: the cost of every engine in milliseconds with its terms, or its rank."""
    engines = []
    for score in decision.scores:
        if score.unit is Unit.RANK:
            cost = f"rank {score.total:.6g}"
        else:
            terms = " + ".join(f"{name} {1000 * term:.0f}" for name, term in score.terms.items())
            cost = f"{1000 * score.total:.0f} ms = {terms}"
        engines.append(f"{score.engine}: {cost}, {score.hit_tokens:.0f} tokens cached")
    return "; ".join([f"{decision.policy}, {decision.reason}", *engines])
