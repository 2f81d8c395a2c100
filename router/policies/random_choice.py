"""random: every engine is as good as any other. The yardstick below which no policy should fall."""

from __future__ import annotations

from collections.abc import Sequence

from router.policies.base import Policy, RoutingContext
from router.types import Candidate, Score


class RandomChoice(Policy):
    """All totals are equal, so the tie-break draws: uniform over the candidates."""

    name = "random"

    def choose(self, routing: RoutingContext, candidates: Sequence[Candidate]) -> tuple[Score, ...]:  # noqa: ARG002
        return tuple([Score(view.engine, 0.0, None, hit) for view, hit in candidates])
