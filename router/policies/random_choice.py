"""random: every engine is as good as any other. The yardstick below which no policy should fall."""

from __future__ import annotations

from collections.abc import Sequence

from router.policies.base import NoOptions, RoutingContext, Totals, TotalsPolicy
from router.types import Candidate


class RandomChoice(TotalsPolicy[NoOptions]):
    """All totals are equal, so the tie-break draws: uniform over the candidates."""

    name = "random"

    def weigh(self, routing: RoutingContext, candidates: Sequence[Candidate]) -> Totals:  # noqa: ARG002
        return Totals([0.0] * len(candidates))
