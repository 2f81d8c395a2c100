"""What a policy sees of one engine for one request: a fixed-order, named vector of plain quantities.

The vector travels with the decision (`Score.features`), so that completion learns from what the choice saw.
"""

from __future__ import annotations

from typing import NamedTuple

from router.types import EngineView


class Features(NamedTuple):
    """Lengths in tokens, counts in requests."""

    in_flight: float
    """n: requests on the engine."""
    waiting: float
    """nw: streamed ones without a first token."""
    unseen: float
    """Unstreamed ones believed not to be computed yet."""
    backlog_tokens: float
    """q: uncached prompt tokens believed to lie ahead, of waiting and unseen ones."""
    miss_tokens: float
    """m: of this request's prompt, what the engine would have to compute."""
    hit_tokens: float
    """h: the rest."""
    others: float
    """n~: requests that would decode beside it (see `crowd`)."""
    context_tokens: float
    """ctx~: their prompts, as far as the engine's cache can hold them."""
    output_tokens: float
    """o: expected answer."""
    scale: float
    """c: the engine's slowness against the fleet, 1 = usual."""


def crowd(requests: float, context_tokens: float, capacity_tokens: float) -> tuple[float, float]:
    """(n~, ctx~): requests and context that run at once, when the rest of them waits for room in the cache.

    n~ = n min(1, cap / ctx),  ctx~ = min(ctx, cap)
    """
    if context_tokens <= capacity_tokens:
        return requests, context_tokens
    return requests * capacity_tokens / context_tokens, capacity_tokens


def queued_tokens(view: EngineView, now: float, tokens_per_s: float) -> float:
    """q = max(0, Q - min(m_head, age_head * speed)): the streamed queue, less what the head of it has behind it.

    Q: `waiting_tokens`; age_head: since the head could begin.
    """
    head = view.head
    if head is None:
        return 0.0
    done_tokens = min(head.miss_tokens, max(0.0, now - view.head_since_s) * tokens_per_s)
    return max(0.0, view.waiting_tokens - done_tokens)
