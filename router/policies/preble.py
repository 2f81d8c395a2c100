"""preble: the policy E2 (exploit and explore). It follows a long cached prefix, and goes by load if there is none.

    if  max h >= len - max h  (at least half is cached)  and  L_home <= balance_ratio min L:
                 exploit: of the engines with the longest prefix the one with the least L; its L is L_home
    else:        explore: argmin L_i + M_i + P_i                                         seconds

    L_i = b_i miss_i + out_i tpot_i           load: prefill sent there in the last H = 180 s, and decoding still to come
    M_i = reuse_i b_i (len - h_i)             eviction: prefill that the evicted blocks would have saved
    P_i = b_i (len - h_i)                     own prefill

len: prompt tokens of this request; h_i: those of them that engine i has cached; b_i: prefill time of a token, seconds;
miss_i: uncached prompt tokens of the requests sent there within H; reuse_i: the cached share of their prompts; out_i:
expected output tokens of the requests that are there now; tpot_i: time per output token, seconds.

Source: Srivatsa et al., "Preble: Efficient Distributed Prompt Scheduling for LLM Serving" (ICLR 2025, arXiv 2407.00023)
section 3.2, and `runtime_selector`, `get_node_cost` (prefill of the window, decoding of the active requests) and
`virtual_evict_for_routing` in multi_node/global_scheduler_with_time.py of WukLab/preble. From there come the window of
3 minutes, the median of the last 200 times per output token with a start of .15 s, rebalancing at a load ratio of 15,
and caches that are taken to be full, so that as many blocks are evicted as are added.

This is a simplified reading. Here a prompt of which exactly half is cached is followed; there the prefix must be longer
than the rest. They profile prefill times per GPU offline. Here b_i is measured from one first token on the engine to
the next, or from the dispatch if that came later. It is averaged over very many first tokens, because L_i adds up
minutes of work, and an error of a tenth in b_i would look like many seconds of it. They follow every node of a prefix
tree and add up the hit rates of the nodes that would be evicted; here the engine's own share of hits stands for those.
Of their moving and copying of prefixes after the assignment only the balance_ratio is left.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import NamedTuple

from router.options import option
from router.policies.base import RoutingContext, Totals, TotalsPolicy
from router.types import Candidate, Decision, Ending, EngineId, Outcome, ReleasedBooking, Unit

SLICES = 60  # parts of the window; old work leaves it one slice at a time
START_TOKENS, START_S = 1000.0, 0.1  # b before any sample: these tokens in this time
KEEP = 0.997  # what a sample of b leaves of the older ones
START_TPOT_S, TPOT_SAMPLES = 0.15, 200
ASIDE_S = 1e6  # added to the total of the engines without the prefix while it is exploited

_State = tuple[float, float, float]  # L_i, seconds; b_i, seconds a token; reuse_i


class _Work(NamedTuple):
    """Prompt tokens of requests sent to one engine."""

    miss: float = 0.0
    hit: float = 0.0

    def plus(self, other: _Work) -> _Work:
        return _Work(self.miss + other.miss, self.hit + other.hit)


@dataclass(slots=True)
class _Engine:
    """What is known of one engine.

    slices: the work sent there within the window, as at most SLICES of (number of the slice, work), the oldest first;
    sum: their sum. due: expected output tokens of the requests that are there, by booking; due_tokens: their sum.
    computed_tokens, computing_s: decayed sums of uncached tokens and of the time that they took.
    """

    slices: deque[tuple[int, _Work]] = field(default_factory=deque)
    sum: _Work = _Work()  # noqa: RUF009 -- frozen
    due: dict[int, float] = field(default_factory=dict)
    due_tokens: float = 0.0
    computed_tokens: float = START_TOKENS
    computing_s: float = START_S
    first_token_s: float = float("-inf")
    tpots_s: deque[float] = field(default_factory=lambda: deque([START_TPOT_S], maxlen=TPOT_SAMPLES))
    tpot_s: float = START_TPOT_S

    def add(self, number: int, work: _Work) -> None:
        self.sum = self.sum.plus(work)
        if self.slices and self.slices[-1][0] == number:
            work = self.slices.pop()[1].plus(work)
        self.slices.append((number, work))

    def begin(self, booking: int, output_tokens: float) -> None:
        self.due[booking] = output_tokens
        self.due_tokens += output_tokens

    def end(self, booking: int) -> None:
        self.due_tokens -= self.due.pop(booking, 0.0)
        if not self.due:
            self.due_tokens = 0.0  # a running sum of floats drifts

    def expire(self, number: int) -> None:
        """Slice `number` begins. Drop the slices that have left the window, and add up the others anew, so that the sum
        does not drift."""
        while self.slices and self.slices[0][0] <= number - SLICES:
            self.slices.popleft()
        self.sum = self.within(number)

    @property
    def token_s(self) -> float:
        """b_i."""
        return self.computing_s / max(1.0, self.computed_tokens)

    def measure(self, dispatched_s: float, now: float, miss_tokens: float) -> None:
        """A first token was seen at `now`. If one step gives several first tokens, the first of them adds the time of
        the step, and each adds its tokens."""
        elapsed_s = max(0.0, now - max(dispatched_s, self.first_token_s))
        self.first_token_s = now
        self.computing_s = KEEP * self.computing_s + elapsed_s
        self.computed_tokens = KEEP * self.computed_tokens + miss_tokens

    def within(self, number: int) -> _Work:
        """The work of the window that ends with slice `number`."""
        total = _Work()
        for each, work in self.slices:
            if each > number - SLICES:
                total = total.plus(work)
        return total


@dataclass(frozen=True)
class PrebleOptions:
    """The options are H and balance_ratio above."""

    window_secs: float = option(180.0, "past assignments that count as load", unit="seconds", low=1)
    balance_ratio: float = option(
        15.0, "load over the lightest engine's beyond which a cached prefix is not followed", low=1
    )


class Preble(TotalsPolicy[PrebleOptions]):
    """The total is a cost in seconds. When a prefix is exploited it is a rank, made of the load."""

    name = "preble"
    Options = PrebleOptions

    def __init__(self, options: PrebleOptions | None = None) -> None:
        super().__init__(options)
        self._engines: dict[EngineId, _Engine] = {}
        self._slice = 0

    def weigh(self, routing: RoutingContext, candidates: Sequence[Candidate]) -> Totals:
        number = self._number(routing.now)
        states = [self._state(view.engine, number) for view, _ in candidates]
        longest = max([hit for _, hit in candidates])
        if longest >= routing.prompt_tokens - longest:
            home = min([load for (load, _, _), c in zip(states, candidates, strict=True) if c.hit_tokens == longest])
            if home <= self.options.balance_ratio * min([load for load, _, _ in states]):
                return self._exploit(candidates, states, longest)
        return self._explore(routing, candidates, states)

    def _exploit(self, candidates: Sequence[Candidate], states: Sequence[_State], longest: float) -> Totals:
        pairs = zip(states, candidates, strict=True)
        return Totals([load if hit == longest else load + ASIDE_S for (load, _, _), (_, hit) in pairs])

    def _explore(self, routing: RoutingContext, candidates: Sequence[Candidate], states: Sequence[_State]) -> Totals:
        loads, evictions, prefills = [], [], []
        for (load, token_s, reuse), (_, hit) in zip(states, candidates, strict=True):
            prefill = token_s * (routing.prompt_tokens - hit)  # P_i
            loads.append(load)
            evictions.append(reuse * prefill)  # M_i
            prefills.append(prefill)
        totals = [load + eviction + prefill for load, eviction, prefill in zip(loads, evictions, prefills, strict=True)]
        return Totals(totals, Unit.SECONDS, terms={"load": loads, "eviction": evictions, "prefill": prefills})

    def _state(self, engine: EngineId, number: int) -> _State:
        """(L_i, b_i, reuse_i) at slice `number`. b_i is at its start, and the others are 0, for an unknown engine."""
        known = self._engines.get(engine)
        if known is None:
            return 0.0, START_S / START_TOKENS, 0.0
        miss, hit = known.sum if number <= self._slice else known.within(number)
        token_s = known.token_s
        load = token_s * miss + known.due_tokens * known.tpot_s  # L_i
        return load, token_s, hit / (miss + hit) if hit else 0.0

    def _number(self, now: float) -> int:
        """The number of the slice that `now` falls into."""
        return int(now / self.options.window_secs * SLICES)

    # --- events -------------------------------------------------------------------------------------------------

    def dispatched(self, decision: Decision) -> None:
        number = self._number(decision.dispatched_s)
        if number > self._slice:
            self._slice = number
            for each in self._engines.values():
                each.expire(number)
        known = self._engines.setdefault(decision.engine, _Engine())
        miss_tokens = decision.prompt_tokens - decision.hit_tokens
        known.add(self._slice, _Work(miss_tokens, decision.hit_tokens))
        known.begin(decision.booking, decision.output_tokens)

    def first_token(self, decision: Decision, now: float) -> None:
        known = self._engines.get(decision.engine)
        if known is not None:
            known.measure(decision.dispatched_s, now, decision.prompt_tokens - decision.hit_tokens)

    def learn(self, decision: Decision, released: ReleasedBooking, outcome: Outcome) -> None:
        known = self._engines.get(decision.engine)
        if known is None:
            return
        known.end(decision.booking)
        output_tokens = outcome.output_tokens or 0
        if outcome.ending is not Ending.OK or released.first_token_s is None or output_tokens < 2:
            return
        known.tpots_s.append((released.done_s - released.first_token_s) / (output_tokens - 1))
        known.tpot_s = median(known.tpots_s)

    def forget(self, engine: EngineId) -> None:
        self._engines.pop(engine, None)

    def describe(self, engine: EngineId) -> dict[str, object]:
        load, _, reuse = self._state(engine, self._slice)
        return {"load_s": round(load, 3), "hit_share": round(reuse, 3)}
