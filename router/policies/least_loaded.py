"""least_loaded: the engine with the fewest requests in flight. It learns nothing, so nothing can lead it astray: the
router falls back to it."""

from __future__ import annotations

from collections.abc import Sequence

from router.policies.base import Policy, RoutingContext
from router.types import Candidate, Score


class LeastLoaded(Policy):
    """`total_s` is a rank: the requests in flight."""

    name = "least_loaded"

    def choose(self, routing: RoutingContext, candidates: Sequence[Candidate]) -> tuple[Score, ...]:  # noqa: ARG002
        return tuple(Score(c.view.engine, float(c.view.in_flight), None, c.hit_tokens) for c in candidates)
