"""round_robin: engines take turns. The engine whose last turn is longest ago goes next, so the turns stay fair when
engines join or leave and when a request is retried on another engine.
"""

from __future__ import annotations

from collections.abc import Sequence

from router.policies.base import NoOptions, RoutingContext, Totals, TotalsPolicy
from router.types import Candidate, Decision, EngineId


class RoundRobin(TotalsPolicy[NoOptions]):
    """The total is a rank: the serial number of the engine's last turn."""

    name = "round_robin"

    def __init__(self, options: NoOptions | None = None) -> None:
        super().__init__(options)
        self._last_turn: dict[EngineId, int] = {}  # one entry an engine

    def weigh(self, routing: RoutingContext, candidates: Sequence[Candidate]) -> Totals:  # noqa: ARG002
        return Totals([float(self._last_turn.get(view.engine, 0)) for view, _ in candidates])

    def dispatched(self, decision: Decision) -> None:
        self._last_turn[decision.engine] = decision.booking

    def forget(self, engine: EngineId) -> None:
        self._last_turn.pop(engine, None)
