"""lmetric: uncached tokens times batch size.

    i* = argmin (Q_i + len - h_i) (n_i + 1)

Q: uncached prompt tokens queued there; len - h: those of this request; n: requests there, running and waiting. Zhang
et al., "Simple is Better: Multiplication May Be All You Need for LLM Request Scheduling" (OSDI 2026, arXiv 2603.15202)
section 5: P-token, which includes the queued prefill, times BS. A product needs no weight: any factor of either
cancels. With the 1, this request counts in the batch; without it every idle engine would tie at 0. The detector of
prefixes so hot that the product misleads (section 5.2) is left out.

Prefill is over at the first token; unstreamed requests do not show one and count in the batch alone.
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
    """(Q + len - h) (n + 1). At least one token: an empty prompt goes to the smaller batch."""
    view, hit = candidate
    return max(1.0, view.waiting_tokens + routing.prompt_tokens - hit) * (view.in_flight + 1)
