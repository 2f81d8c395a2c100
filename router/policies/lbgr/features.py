"""What a policy sees of one engine for one request: a fixed-order, named vector of plain quantities.

The vector travels with the decision (`Score.features`), so that completion learns from what the choice saw.
"""

from __future__ import annotations

from typing import NamedTuple


class Features(NamedTuple):
    """What completion learns from and no Decision tells. Lengths in tokens, counts in requests."""

    waiting: float
    """nw: streamed ones without a first token."""
    unseen: float
    """u: unstreamed ones believed not to be computed yet."""
    backlog_tokens: float
    """q: uncached prompt tokens believed to lie ahead, of waiting and unseen ones."""


def crowd(requests: float, context_tokens: float, capacity_tokens: float) -> tuple[float, float]:
    """(n~, ctx~): requests and context that run at once, when the rest of them waits for room in the cache.

    n~ = n min(1, cap / ctx),  ctx~ = min(ctx, cap)
    """
    if context_tokens <= capacity_tokens:
        return requests, context_tokens
    return requests * capacity_tokens / context_tokens, capacity_tokens


def queued_tokens(queue_tokens: float, head_tokens: float, done_tokens: float) -> float:
    """q = max(0, Q - min(m_head, age_head * speed)): the streamed queue, less what the head of it has behind it.

    Q: uncached tokens of all in the queue; m_head: of its head; done: what its engine can have computed since then.
    """
    left = queue_tokens - max(0.0, min(head_tokens, done_tokens))
    return left if left > 0.0 else 0.0
