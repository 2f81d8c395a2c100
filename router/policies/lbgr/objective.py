"""What lbgr makes short: whole answers (`e2e`), the time to the first token (`ttft`), or clients' own bounds (`slo`).

    e2e    F = kf (time to the first token)       kf: option first_token_weight
    ttft   the same with kf at least 4: decoding keeps its weight, for what decodes now is what later prompts wait for
    slo    F as in e2e, and for a request that says how soon it wants its first token (T) or each later one (P)

               S = ks (T miss(t / T) + o P miss(p / P)),   miss(x) = x^4 / (1 + x^4)

           t, p: predicted time to the first token and for each later one; o: expected output; ks: option slo_weight.

`miss` is the chance that a prediction of x times the bound misses it, if what comes is log-logistic around what was
predicted (an error of a quarter is usual). It saturates: a bound that is lost anyway buys no place from others.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from router.policies.base import RoutingContext
from router.policies.lbgr.options import LbgrOptions

TTFT_WEIGHT = 4.0

Cost = Callable[[float, float], float]
"""(predicted seconds until the first token, seconds from there to the end) -> S, seconds."""
Penalty = Callable[[RoutingContext], Cost | None]


def objective_of(options: LbgrOptions) -> tuple[float, Penalty]:
    """(kf, S by request: None where it has no bounds, or they are not heeded)."""
    urgency = options.first_token_weight
    if options.objective == "ttft":
        return max(TTFT_WEIGHT, urgency), no_penalty
    return urgency, partial(penalty, options.slo_weight) if options.objective == "slo" else no_penalty


def no_penalty(routing: RoutingContext) -> None:
    """No bounds are heeded."""
    del routing


def penalty(weight: float, routing: RoutingContext) -> Cost | None:
    """S for one request."""
    ttft_s, tpot_s = routing.request.slo_ttft_s, routing.request.slo_tpot_s
    if ttft_s is None and tpot_s is None:
        return None
    later = max(1.0, routing.output_tokens - 1)

    def cost(first_s: float, rest_s: float) -> float:
        ttft = ttft_s * miss(first_s / ttft_s) if ttft_s else 0.0
        tpot = later * tpot_s * miss(rest_s / later / tpot_s) if tpot_s else 0.0
        return weight * (ttft + tpot)

    return cost


def miss(ratio: float) -> float:
    """The chance that a bound is missed of which the prediction is that part; 0 to 1."""
    odds = min(ratio, 1e6) ** 4
    return odds / (1.0 + odds)
