"""dynamo_kv: NVIDIA Dynamo's KV router: blocks to prefill plus blocks to decode over.

    cost = w (Q + len - h) / block + (C + len) / block               i* = argmin cost

Q: uncached prompt tokens queued there; len - h: those of this request; C: prompts of all requests there; w: the option
overlap_score_weight (Dynamo's --kv-overlap-score-weight, 1). ai-dynamo/dynamo: "prefill_cost_blocks +
decode_cost_blocks" of `worker_logit` in lib/kv-router/src/scheduling/selector/default.rs, and "Cost Calculation" in its
router guide, whose worked example is in the tests. Its temperature is at its default, 0: the lowest cost, ties drawn.

What differs: C counts a block once for every request that uses it, Dynamo once; h comes from the router's own index
instead of KV events. Weights for requests, for cache tiers and for credit decay are off, as by its defaults. Prefill
is over at the first token; unstreamed requests do not show one and count in C alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from router.options import option
from router.policies.base import RoutingContext, Totals, TotalsPolicy
from router.types import Candidate

BLOCK_TOKENS = 64  # of a block in the cost; another size would change no order


@dataclass(frozen=True)
class DynamoKvOptions:
    """w above."""

    overlap_score_weight: float = option(1.0, "weight of blocks to prefill against blocks in use", low=0)


class DynamoKv(TotalsPolicy[DynamoKvOptions]):
    """The total is a rank: a cost in blocks."""

    name = "dynamo_kv"
    Options = DynamoKvOptions

    def weigh(self, routing: RoutingContext, candidates: Sequence[Candidate]) -> Totals:
        weight, prompt = self.options.overlap_score_weight, routing.prompt_tokens
        totals = []
        for view, hit in candidates:
            prefill = weight * (view.waiting_tokens + prompt - hit) / BLOCK_TOKENS
            decode = (view.context_tokens + prompt) / BLOCK_TOKENS
            totals.append(prefill + decode)
        return Totals(totals)
