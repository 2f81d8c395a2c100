"""random: every engine gets a request with the same chance. No policy should do worse than this one."""

from __future__ import annotations

from collections.abc import Sequence

from router.policies.base import NoOptions, RoutingContext, Totals, TotalsPolicy
from router.types import Candidate


class RandomChoice(TotalsPolicy[NoOptions]):
    """All totals are equal, so the tie-break draws one of the candidates uniformly."""

    name = "random"

    def weigh(self, routing: RoutingContext, candidates: Sequence[Candidate]) -> Totals:  # noqa: ARG002
        return Totals([0.0] * len(candidates))
