"""least_loaded: the engine with the fewest requests in flight gets the request.

It learns nothing and computes nothing that could fail, so the router uses it when a policy raises an error.
"""

from __future__ import annotations

from collections.abc import Sequence

from router.policies.base import NoOptions, RoutingContext, Totals, TotalsPolicy
from router.types import Candidate


class LeastLoaded(TotalsPolicy[NoOptions]):
    """The total is a rank: the requests in flight."""

    name = "least_loaded"

    def weigh(self, routing: RoutingContext, candidates: Sequence[Candidate]) -> Totals:  # noqa: ARG002
        return Totals([float(view.in_flight) for view, _ in candidates])
