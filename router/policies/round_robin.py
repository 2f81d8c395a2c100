"""round_robin: engines take turns; the one whose last turn is longest ago goes next, so joining and leaving engines and
retries elsewhere keep the turns fair."""

from __future__ import annotations

from collections.abc import Sequence

from router.config import Config
from router.policies.base import Policy, RoutingContext
from router.types import Candidate, Decision, EngineId, Score


class RoundRobin(Policy):
    """`total_s` is a rank: the serial number of the engine's last turn."""

    name = "round_robin"

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self._last_turn: dict[EngineId, int] = {}  # one entry an engine

    def choose(self, routing: RoutingContext, candidates: Sequence[Candidate]) -> tuple[Score, ...]:  # noqa: ARG002
        return tuple(
            Score(c.view.engine, float(self._last_turn.get(c.view.engine, 0)), None, c.hit_tokens) for c in candidates
        )

    def dispatched(self, decision: Decision) -> None:
        self._last_turn[decision.engine] = decision.booking

    def forget(self, engine: EngineId) -> None:
        self._last_turn.pop(engine, None)
