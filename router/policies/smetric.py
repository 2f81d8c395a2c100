"""smetric: a conversation stays on the engine that has its prefix while that engine can keep the TTFT target. All other
requests go as by lmetric.

    first turn, or evicted (max h <= hit_ratio len'):   argmin (Q + len - h) (n + 1)
    follow-up:  argmax h  if an engine with the longest h is in time, or if no engine is; else as a first turn
    in time:    (Q + len - h) / speed <= slack (ttft_slo_secs + ttft_slo_secs_per_1k_tokens len / 1000)

Q: uncached prompt tokens queued on the engine; len: prompt tokens of this request; h: those of them that the engine has
cached; n: requests there; len': prompt tokens of the turn before; speed: tokens a second (`PrefillSpeed`), where an
engine without enough samples counts as in time.

Source: Wang et al., "SMetric: Rethink LLM Scheduling for Serving Agents with Balanced Session-centric Scheduling"
(arXiv 2607.08565) section 4.2. The rule, the option names and the defaults are those of vllm-project/router: the
policy's section in docs/load_balancing/README.md, and `select_prefill` in src/policies/smetric.rs. The score with n + 1
is that of lmetric.

What differs: the number of a turn is not read from the messages. A prompt is a follow-up if it continues an earlier
prompt, that is, if the last full block of the earlier one is among its own blocks. So the rule works for any route and,
like theirs, needs no session id. Their rule has nothing for prompts that share much but are no turns: these are first
turns and go as by lmetric (shared_ratio 1 gives that rule). Here a prompt that continues nothing also counts as a
follow-up if max h >= shared_ratio len and its client names no session, which is much stronger on such traffic. If
clients name sessions, first turns are balanced whatever system prompt they share, for that is the idea of the policy.
Prefill is priced by new tokens alone, which is their default, without the attention term c n (L - n / 2).
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from router.options import option
from router.policies.base import RoutingContext, Totals, TotalsPolicy
from router.policies.lmetric import product
from router.types import BlockKey, Candidate, Decision, EngineId

TURNS = 65_536
"""The most prompts whose last block is remembered, about 100 bytes each. The least recently used are dropped first."""

SAMPLES, LEAST_SAMPLES, PERCENTILE = 64, 8, 0.9


@dataclass(slots=True)
class _Samples:
    last: deque[float] = field(default_factory=lambda: deque(maxlen=SAMPLES))
    tokens_per_s: float | None = None


class PrefillSpeed:
    """How fast each engine computes prompts, from streamed requests: uncached tokens divided by the time to first
    token.

    Requests that had to wait give too low a speed. So the speed is a high PERCENTILE of the last SAMPLES of an engine,
    which comes from requests that found the engine free.
    """

    def __init__(self) -> None:
        self._engines: dict[EngineId, _Samples] = {}

    def predict_one(self, engine: EngineId) -> float | None:
        """Uncached tokens a second; None for an engine with fewer than LEAST_SAMPLES."""
        samples = self._engines.get(engine)
        return samples.tokens_per_s if samples else None

    def learn_one(self, engine: EngineId, miss_tokens: float, elapsed_s: float) -> None:
        """A first token came after elapsed_s. A sample without uncached tokens, or without a positive time, is
        ignored."""
        if miss_tokens <= 0 or elapsed_s <= 0:
            return
        samples = self._engines.setdefault(engine, _Samples())
        samples.last.append(miss_tokens / elapsed_s)
        if len(samples.last) >= LEAST_SAMPLES:
            samples.tokens_per_s = sorted(samples.last)[round((len(samples.last) - 1) * PERCENTILE)]

    def forget(self, engine: EngineId) -> None:
        self._engines.pop(engine, None)


@dataclass(frozen=True)
class SMetricOptions:
    """The options are those named in the rule above."""

    hit_ratio: float = option(
        0.5, "share of the turn before that must still be cached for a conversation to stay", low=0, high=1
    )
    shared_ratio: float = option(
        0.5,
        "share of a prompt without a session that must be cached to make it a follow-up; 1: turns only",
        low=0,
        high=1,
    )
    slack: float = option(1.0, "factor on the target for the first token", low=0)
    ttft_slo_secs: float = option(1.0, "target for the first token of any prompt", unit="seconds", low=0)
    ttft_slo_secs_per_1k_tokens: float = option(
        0.0625, "what each thousand prompt tokens add to the target", unit="seconds", low=0
    )


class SMetric(TotalsPolicy[SMetricOptions]):
    """The total is a rank: the uncached prompt tokens if the conversation stays, tokens times requests if not."""

    name = "smetric"
    Options = SMetricOptions

    def __init__(self, options: SMetricOptions | None = None) -> None:
        super().__init__(options)
        self._speeds = PrefillSpeed()
        self.turns: OrderedDict[BlockKey, None] = OrderedDict()
        """The last full blocks of prompts, at most TURNS, the least recently used first."""

    def weigh(self, routing: RoutingContext, candidates: Sequence[Candidate]) -> Totals:
        if self._stays(routing, candidates):
            return Totals([routing.prompt_tokens - hit for _, hit in candidates])
        return Totals([product(routing, candidate) for candidate in candidates])

    def _stays(self, routing: RoutingContext, candidates: Sequence[Candidate]) -> bool:
        """Whether the prompt is a follow-up whose prefix is not evicted, and either an engine with the longest prefix
        is in time or no engine is."""
        before = self._before(routing)
        longest = max([hit for _, hit in candidates])
        if before is None:
            named = routing.request.session is not None
            if named or not 0 < longest >= self.options.shared_ratio * routing.prompt_tokens:
                return False
        elif longest <= self.options.hit_ratio * before:
            return False
        if any(self._in_time(routing, c) for c in candidates if c.hit_tokens == longest):
            return True
        return not any(self._in_time(routing, c) for c in candidates)

    def _before(self, routing: RoutingContext) -> float | None:
        """len', tokens: the length of the longest earlier prompt that this one continues; None for a first turn."""
        prompt = routing.request.prompt
        blocks = len(prompt.keys)
        for key in reversed(prompt.keys):
            if key in self.turns:
                return routing.prompt_tokens * blocks * prompt.block_units / prompt.units
            blocks -= 1
        return None

    def _in_time(self, routing: RoutingContext, candidate: Candidate) -> bool:
        """Whether this engine is expected to keep the target for the first token."""
        view, hit = candidate
        speed = self._speeds.predict_one(view.engine)
        if speed is None:
            return True
        options = self.options
        target_s = options.ttft_slo_secs + options.ttft_slo_secs_per_1k_tokens * routing.prompt_tokens / 1000
        return (view.waiting_tokens + routing.prompt_tokens - hit) / speed <= options.slack * target_s

    def dispatched(self, decision: Decision) -> None:
        keys = decision.request.prompt.keys
        if keys:
            self.turns[keys[-1]] = None
            self.turns.move_to_end(keys[-1])
            if len(self.turns) > TURNS:
                self.turns.popitem(last=False)

    def first_token(self, decision: Decision, now: float) -> None:
        miss_tokens = decision.prompt_tokens - decision.hit_tokens
        self._speeds.learn_one(decision.engine, miss_tokens, now - decision.dispatched_s)

    def forget(self, engine: EngineId) -> None:
        self._speeds.forget(engine)

    def describe(self, engine: EngineId) -> dict[str, object]:
        speed = self._speeds.predict_one(engine)
        return {"prefill_tokens_per_s": None if speed is None else round(speed)}
