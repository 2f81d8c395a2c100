"""Who decides for the data path: the router in this process, or one that several processes share.

`Decider` is all that the data path needs of a router. `LocalDecider` asks the router directly.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Protocol

from router.core.router import Router
from router.types import Decision, EngineId, Outcome, ParsedRequest, Placement, Unit

log = logging.getLogger("leafcutter.gateway")


class Decider(Protocol):
    """Places requests and takes in what became of them. Times are monotonic, in seconds."""

    async def route(self, request: ParsedRequest, exclude: Sequence[EngineId]) -> Placement:
        """Choose an engine and book the request's load on it.

        exclude: the engines that have been tried already. Raises NotFound and NoEngine, as `Router.route` does.
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
        decision = self._router.route(request, self._clock(), exclude=exclude)
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
