"""power_of_two: of two engines drawn at random, the one with fewer requests in flight, the first drawn if level.

Mitzenmacher, "The Power of Two Choices in Randomized Load Balancing" (IEEE TPDS 2001): the longest queue falls from
log M / log log M to log log M. The rule is the one of sgl-project/sglang and vllm-project/router
(src/policies/power_of_two.rs), less the load that they poll from the engines besides their own counts.
"""

from __future__ import annotations

from collections.abc import Sequence

from router.policies.base import NoOptions, RoutingContext, Totals, TotalsPolicy
from router.types import Candidate

SECOND = 0.5  # loses a tie against the first, wins against one request more


class PowerOfTwo(TotalsPolicy[NoOptions]):
    """The total is a rank: the requests in flight of the two; one more than both for the engines not drawn."""

    name = "power_of_two"

    def weigh(self, routing: RoutingContext, candidates: Sequence[Candidate]) -> Totals:
        loads = [float(view.in_flight) for view, _ in candidates]
        first, second = draw_two(len(candidates), routing.chance)
        beyond = max(loads[first], loads[second]) + 1.0
        totals = [beyond] * len(candidates)
        totals[second] = loads[second] + SECOND
        totals[first] = loads[first]
        return Totals(totals)


def draw_two(count: int, chance: float) -> tuple[int, int]:
    """Two different numbers below `count`, every ordered pair as likely; (0, 0) if there is but one. chance: [0, 1)."""
    if count == 1:
        return 0, 0
    first, second = divmod(int(chance * count * (count - 1)), count - 1)
    return first, second + (second >= first)
