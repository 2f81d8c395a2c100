"""dynamo_kv: the rule of NVIDIA Dynamo's KV router, which adds up blocks to prefill and blocks to decode over.

    cost = w (Q + len - h) / block + (C + len) / block               i* = argmin cost

Q: uncached prompt tokens queued on the engine; len: prompt tokens of this request; h: those of them that the engine has
cached; C: prompt tokens of all requests there; block: BLOCK_TOKENS; w: the option overlap_score_weight (Dynamo's
--kv-overlap-score-weight, 1). Source: ai-dynamo/dynamo, "prefill_cost_blocks + decode_cost_blocks" of `worker_logit` in
lib/kv-router/src/scheduling/selector/default.rs, and "Cost Calculation" in its router guide, whose worked example is in
the tests. Dynamo's temperature is at its default, 0: the lowest cost wins, and ties are drawn.

What differs: C counts a block once for every request that uses it, where Dynamo counts it once. h comes from the
router's own index instead of KV events. Dynamo's weights for requests, for cache tiers and for credit decay are off, as
by its defaults. A prompt counts in Q until its first token. Unstreamed requests show no first token, so they count in C
only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from router.options import option
from router.policies.base import RoutingContext, Totals, TotalsPolicy
from router.types import Candidate

BLOCK_TOKENS = 64  # another size would change no order of the engines


@dataclass(frozen=True)
class DynamoKvOptions:
    """The option is w above."""

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
