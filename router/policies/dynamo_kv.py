"""dynamo_kv: NVIDIA Dynamo's KV router: blocks to prefill plus blocks to decode over.

    cost = w (Q + len - h) / block + (C + len) / block               i* = argmin cost

Q: uncached prompt tokens queued there; len - h: those of this request; C: prompts of all requests there; w: option
dynamo_kv_overlap_score_weight (Dynamo's --kv-overlap-score-weight, 1). ai-dynamo/dynamo: "prefill_cost_blocks +
decode_cost_blocks" of `worker_logit` in lib/kv-router/src/scheduling/selector/default.rs, and "Cost Calculation" in its
router guide, whose worked example is in the tests. Its temperature is at its default, 0: the lowest cost, ties drawn.

What differs: C counts a block once for every request that uses it, Dynamo once; h comes from the router's own index
instead of KV events. Weights for requests, for cache tiers and for credit decay are off, as by its defaults. Prefill
is over at the first token; unstreamed requests do not show one and count in C alone.
"""

from __future__ import annotations

from collections.abc import Sequence

from router.policies.base import Policy, RoutingContext
from router.types import Candidate, Score


class DynamoKv(Policy):
    """`total_s` is a cost in blocks of prefix_block_tokens; their size changes no order."""

    name = "dynamo_kv"

    def choose(self, routing: RoutingContext, candidates: Sequence[Candidate]) -> tuple[Score, ...]:
        block, weight, prompt = (
            self.config.prefix_block_tokens,
            self.config.dynamo_kv_overlap_score_weight,
            routing.prompt_tokens,
        )
        scores = []
        for view, hit in candidates:
            prefill = weight * (view.waiting_tokens + prompt - hit) / block
            decode = (view.context_tokens + prompt) / block
            scores.append(Score(view.engine, prefill + decode, None, hit))
        return tuple(scores)
