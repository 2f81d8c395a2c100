"""lmetric: the engine with the lowest product of uncached tokens and batch size gets the request.

    i* = argmin (Q_i + len - h_i) (n_i + 1)

i: the engine; Q: uncached prompt tokens queued there; len: prompt tokens of this request; h: those of them that the
engine has cached; n: requests there, running and waiting. Source: Zhang et al., "Simple is Better: Multiplication May
Be All You Need for LLM Request Scheduling" (OSDI 2026, arXiv 2603.15202), section 5: P-token, which includes the queued
prefill, times BS. A product needs no weight, because a factor on either part changes no order. The 1 counts this
request in the batch; without it all idle engines would tie at 0. The paper's detector of prefixes that are so hot that
the product misleads (section 5.2) is left out.

A prompt counts in Q until its first token. Unstreamed requests show no first token, so they count in n only.
"""

from __future__ import annotations

from collections.abc import Sequence

from router.policies.base import NoOptions, RoutingContext, Totals, TotalsPolicy
from router.types import Candidate


class LMetric(TotalsPolicy[NoOptions]):
    """The total is a rank: tokens times requests."""

    name = "lmetric"

    def weigh(self, routing: RoutingContext, candidates: Sequence[Candidate]) -> Totals:
        return Totals([product(routing, candidate) for candidate in candidates])


def product(routing: RoutingContext, candidate: Candidate) -> float:
    """(Q + len - h) (n + 1), with at least one token, so that an empty prompt goes to the smaller batch."""
    view, hit = candidate
    return max(1.0, view.waiting_tokens + routing.prompt_tokens - hit) * (view.in_flight + 1)
