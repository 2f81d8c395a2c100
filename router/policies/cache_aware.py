"""cache_aware: the engine with the longest cached prefix, or the one with the shortest queue when loads are out of
balance.

    if  max n - min n > balance_abs_threshold  and  max n > balance_rel_threshold * min n:     argmin n
    elif  max h > cache_threshold * len:                                                       argmax h
    else:                                                                                      argmin tree size

n: requests in flight on the engine; h: cached prefix there; len: length of the prompt; tree size: all characters that
were sent to the engine and were not cached there before, trimmed to max_tree_size every eviction_interval_secs. The
rule, the option names and their defaults are those of sgl-project/sglang (sgl-router/src/policies/cache_aware.rs) and
its descendant vllm-project/router (the same path, and py_src/vllm_router/router_args.py). SGLang 0.4.6 had the defaults
0.5, 32, 1.0001, 60 s and 2^24.

What differs: h comes from the router's index, which knows how much an engine can hold and forgets as the engine does,
instead of a tree of prompts as large as max_tree_size. Lengths are in tokens of 4 characters. Ties are drawn. As in
their rule, new prompts go where the tree is smallest, however long the queue there is (below the thresholds).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from router.options import option
from router.policies.base import RoutingContext, Totals, TotalsPolicy
from router.types import Candidate, Decision, EngineId

CHARS_PER_TOKEN = 4.0


@dataclass(frozen=True)
class CacheAwareOptions:
    """The thresholds above. Other routers have them without the prefix `cache_aware_`."""

    cache_threshold: float = option(
        0.3, "share of a prompt that must be cached to be followed", low=0, high=1, aliases=("cache_threshold",)
    )
    balance_abs_threshold: int = option(
        64,
        "queues that differ by more are balanced first, if also by the relative threshold",
        unit="requests",
        low=0,
        aliases=("balance_abs_threshold",),
    )
    balance_rel_threshold: float = option(
        1.5,
        "longest queue over the shortest from which queues are balanced first, if also by the absolute threshold",
        low=0,
        aliases=("balance_rel_threshold",),
    )
    eviction_interval_secs: float = option(
        120.0, "time between two trims of the trees", unit="seconds", low=0, aliases=("eviction_interval_secs",)
    )
    max_tree_size: int = option(
        67_108_864,
        "size to which an engine's tree is trimmed",
        unit="characters",
        low=0,
        aliases=("max_tree_size",),
    )


class CacheAware(TotalsPolicy[CacheAwareOptions]):
    """The total is a rank: requests in flight, prompt tokens not cached, or characters in the tree."""

    name = "cache_aware"
    Options = CacheAwareOptions

    def __init__(self, options: CacheAwareOptions | None = None) -> None:
        super().__init__(options)
        self._tree_chars: dict[EngineId, float] = {}  # one entry an engine
        self._evicted_s = float("-inf")

    def weigh(self, routing: RoutingContext, candidates: Sequence[Candidate]) -> Totals:
        loads = [view.in_flight for view, _ in candidates]
        if self._out_of_balance(max(loads), min(loads)):
            totals = [float(load) for load in loads]
        elif max([hit for _, hit in candidates]) > self.options.cache_threshold * routing.prompt_tokens:
            totals = [routing.prompt_tokens - hit for _, hit in candidates]
        else:
            totals = [self._tree_chars.get(view.engine, 0.0) for view, _ in candidates]
        return Totals(totals)

    def _out_of_balance(self, longest: int, shortest: int) -> bool:
        options = self.options
        difference = longest - shortest
        return difference > options.balance_abs_threshold and longest > options.balance_rel_threshold * shortest

    def dispatched(self, decision: Decision) -> None:
        new_chars = CHARS_PER_TOKEN * (decision.prompt_tokens - decision.hit_tokens)
        self._tree_chars[decision.engine] = self._tree_chars.get(decision.engine, 0.0) + new_chars
        if decision.dispatched_s - self._evicted_s >= self.options.eviction_interval_secs:
            self._evicted_s = decision.dispatched_s
            for engine, chars in self._tree_chars.items():
                self._tree_chars[engine] = min(chars, float(self.options.max_tree_size))

    def forget(self, engine: EngineId) -> None:
        self._tree_chars.pop(engine, None)

    def describe(self, engine: EngineId) -> dict[str, object]:
        return {"tree_chars": round(self._tree_chars.get(engine, 0.0))}
