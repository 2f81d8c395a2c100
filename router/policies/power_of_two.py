"""power_of_two: of two engines drawn at random, the one with fewer requests in flight gets the request. If both have
the same number, it is the one that was drawn first.

Mitzenmacher, "The Power of Two Choices in Randomized Load Balancing" (IEEE TPDS 2001): with M engines the longest queue
falls from log M / log log M to log log M. The rule is that of sgl-project/sglang and vllm-project/router
(src/policies/power_of_two.rs). They add to their own counts a load that they poll from the engines; this policy does
not.
"""

from __future__ import annotations

from collections.abc import Sequence

from router.policies.base import NoOptions, RoutingContext, Totals, TotalsPolicy
from router.types import Candidate

SECOND = 0.5  # added to the second engine: it loses a tie against the first, and wins against one request more


class PowerOfTwo(TotalsPolicy[NoOptions]):
    """The total is a rank: the requests in flight of the two engines drawn, and one more than both for all others."""

    name = "power_of_two"

    def weigh(self, routing: RoutingContext, candidates: Sequence[Candidate]) -> Totals:
        loads = [float(view.in_flight) for view, _ in candidates]
        first, second = draw_two(len(candidates), routing.chance)
        not_drawn = max(loads[first], loads[second]) + 1.0
        totals = [not_drawn] * len(candidates)
        totals[second] = loads[second] + SECOND
        totals[first] = loads[first]
        return Totals(totals)


def draw_two(count: int, chance: float) -> tuple[int, int]:
    """Two different numbers below `count`; all ordered pairs are equally likely. (0, 0) if `count` is 1. chance: a
    uniform number in [0, 1)."""
    if count == 1:
        return 0, 0
    first, second = divmod(int(chance * count * (count - 1)), count - 1)
    return first, second + (second >= first)
