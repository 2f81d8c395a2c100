"""What lbgr makes short: whole answers (`e2e`), the time to the first token (`ttft`), or whole answers within the
clients' own bounds (`slo`). The objective chooses the weight kf of the term F and the term S of the equation in `cost`.

    e2e    kf is the option first_token_weight, and S is 0
    ttft   kf is at least 4, and S is 0
    slo    kf is as in e2e, and  S = ks (T miss(t / T) + l P miss(p / P)),   miss(x) = x^4 / (1 + x^4)

T, P: the bounds of the request on the time to its first token and for each later token, seconds; a bound that it does
not give adds nothing. t, p: the predictions of these times; l: expected number of later tokens; ks: the option
slo_weight. Under `ttft` decoding keeps its weight, because later prompts wait for what decodes now.

miss(x) is the chance that a request misses a bound if its prediction is x times the bound and the actual time has a
log-logistic distribution around the prediction (an error of a quarter is usual). It saturates, so a request whose bound
is lost in any case takes no place from others.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from router.policies.base import RoutingContext
from router.policies.lbgr.options import LbgrOptions

TTFT_WEIGHT = 4.0  # the smallest kf under `ttft`

MissCost = Callable[[float, float], float]
"""Of one request: (predicted time to the first token, predicted time from there to the end) -> S; all in seconds."""
Penalty = Callable[[RoutingContext], MissCost | None]
"""Gives S of a request; None if the request has no bounds, or if the objective ignores them."""


def objective_of(options: LbgrOptions) -> tuple[float, Penalty]:
    """(kf, S by request) for the objective in the options."""
    urgency = options.first_token_weight
    if options.objective == "ttft":
        return max(TTFT_WEIGHT, urgency), no_penalty
    return urgency, partial(penalty, options.slo_weight) if options.objective == "slo" else no_penalty


def no_penalty(routing: RoutingContext) -> None:
    """The penalty of the objectives that ignore bounds: S is 0."""
    del routing


def penalty(weight: float, routing: RoutingContext) -> MissCost | None:
    """S of one request. weight: ks."""
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
    """The chance that a request misses a bound, 0 to 1. ratio: its predicted time over the bound."""
    odds = min(ratio, 1e6) ** 4
    return odds / (1.0 + odds)
