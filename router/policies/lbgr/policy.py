"""lbgr, learning-based greedy routing: the request goes where it costs the whole fleet the least time.

For request j (len = m + h prompt tokens, m uncached, h cached on engine i; o expected output) and every engine i:

    E = c (W + R + w + D + X + V) + F + S                        seconds; i* = argmin E, exact ties at random
    W = a (nw + u) + b q                         own wait: prompts ahead of it and their uncached tokens q
    R = s D max(0, ctx + len - cap) / cap        wait for room: what does not fit the cache cap comes in as others leave
    w = a + b m + al h + at p                    own prefill; p = m (h + m / 2): each token's attention to all before it
    D = o (g0 + g1 n~ + g2 ctx~)                 own decoding, slower the more requests n~, context ctx~ run beside
    X = kp n w + kd o (g1 + g2 len) n~           delay imposed on the n requests already there
    V = (1 + kf) kv price (b m + at p)           price of computing again what another engine holds (`duplication`)
    F = kf c (W + R + w)                         the time to the first token counts more than the rest; so does what V
                                                 takes from others, for it is theirs
    S                                            what it costs to miss the client's objectives (`objective`)
    c                                            its slowness (`engine_speed`), or what its silence tells of it

Predicted latency is c (W + R + w + s D): prefill of others stretches decoding by s, which X has priced already where it
was caused. a, b, al, g0, g1, g2, at, s: `learners.latency`, one set for all engines, so that a new engine predicts at
once. q, n~, ctx~: `features`. kp, kd, kf, kv: options lbgr_imposed_prefill, lbgr_imposed_decode,
lbgr_first_token_weight, lbgr_duplication_weight (towards engines that evict by LRU) and lbgr_duplication_weight_learned
(others).

Streamed requests show their first token: nw counts them and q knows how far the head has come. Unstreamed ones do not:
u and their part of q are a virtual queue (`learners.backlog`) that drains at the learned speed. Mixed traffic adds the
two up, for they wait in one queue, and shares the coefficients, for they mean the same; a step of first tokens that
unstreamed prompts may have shared teaches nothing, as they do it themselves, as whole requests.

Up to 64 engines are all weighed; of more, those that may well be the best (`shortlist`).

A model that knows nothing yet (`cold`) or is wrong by a multiple (`error`) says so (`trouble`): a rule without one
decides until it is better. It learns from what that rule places as from its own.

From "Randomization Boosts KV Caching, Learning Balances Query Load" (arXiv 2601.18999) this keeps the idea: learn the
latency online, route greedily by it. The estimator is our own; docs/algorithms.md derives it and says where it differs.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from router.learners.prediction_error import ErrorAlarm
from router.policies.base import Policy, RoutingContext
from router.policies.lbgr.cost import KILO, MS, TERMS, Cost, Features, crowd, work_of
from router.policies.lbgr.duplication import Duplication
from router.policies.lbgr.engine_speed import EngineSpeed
from router.policies.lbgr.engine_steps import EngineStep, EngineSteps
from router.policies.lbgr.latency import LatencyModel
from router.policies.lbgr.objective import objective_of
from router.policies.lbgr.options import LbgrOptions
from router.policies.lbgr.shortlist import MOST, shortlist
from router.policies.lbgr.virtual_queue import VirtualQueue
from router.saved_state import SavedFields, SavedState
from router.types import Candidate, Decision, Ending, EngineId, Outcome, ReleasedBooking, Scores, Unit

SLOWNESS_FROM_SAMPLES = 8  # before that the model's errors would be taken for the engines'


@dataclass(slots=True)
class _FirstTokens:
    """What one engine's first tokens add up to."""

    steps: EngineSteps = field(default_factory=EngineSteps)
    prefill_ms: float = 0.0
    """Prefill work of all first tokens so far, as predicted, at usual speed."""
    prefill_at: dict[int, float] = field(default_factory=dict)
    """The same when a request's first token came, by its booking; of requests in flight."""


class Lbgr(Policy[LbgrOptions]):
    """The estimator and rule above. Keeps one small entry an engine; load and lengths come from the fleet's views."""

    name = "lbgr"
    Options = LbgrOptions

    def __init__(self, options: LbgrOptions | None = None) -> None:
        super().__init__(options)
        self._model = LatencyModel()
        self._speeds = EngineSpeed()
        self._queues: dict[EngineId, VirtualQueue] = {}
        self._cost = Cost(self.options, self._model, self._speeds, self._queues, *objective_of(self.options))
        self._duplication = Duplication()
        self._first_tokens: dict[EngineId, _FirstTokens] = {}
        self._error_alarm = ErrorAlarm(self.options.error_bound)
        self._cold_until = 0  # the last booking of which nothing could be predicted

    def trouble(self, now: float) -> str | None:  # noqa: ARG002
        if self._cold:
            return "cold"
        return "error" if self._error_alarm.alarm else None

    @property
    def _cold(self) -> bool:
        return self._model.samples < self.options.cold_samples

    def choose(
        self, routing: RoutingContext, candidates: Sequence[Candidate], also: Collection[EngineId] = ()
    ) -> Scores:
        price = self._duplication.price(candidates)
        weighed = candidates
        if len(candidates) > MOST:
            loads = [view.in_flight for view, _ in candidates]
            places = shortlist([hit for _, hit in candidates], loads, routing.chance)
            if also:
                wanted = {place for place, (view, _) in enumerate(candidates) if view.engine in also}
                places = sorted(wanted.union(places))
            weighed = [candidates[place] for place in places]
        return Scores(weighed, self._cost.rows(routing, price, weighed), Unit.SECONDS, TERMS, len(candidates))

    # --- events -------------------------------------------------------------------------------------------------

    def dispatched(self, decision: Decision) -> None:
        if self._cold:
            self._cold_until = decision.booking
        best = decision.longest_tokens / max(1.0, decision.prompt_tokens)
        self._duplication.dispatched(best)
        if not decision.request.stream:
            miss_tokens = decision.prompt_tokens - decision.hit_tokens
            self._queue(decision.engine).add(
                decision.booking,
                miss_tokens,
                decision.dispatched_s,
                self._speed(decision.engine, decision.dispatched_s),
            )

    def first_token(self, decision: Decision, now: float) -> None:
        seen = self._first_tokens.setdefault(decision.engine, _FirstTokens())
        self._queue(decision.engine).reach(decision.booking, now, self._speed(decision.engine, now))
        miss_tokens = decision.prompt_tokens - decision.hit_tokens
        seen.prefill_ms += self._model.prefill_ms(1, *work_of(miss_tokens, decision.hit_tokens))
        seen.prefill_at[decision.booking] = seen.prefill_ms
        f = self._features(decision)
        self._learn_step(decision.engine, seen.steps.add(decision, now, clean=f is not None and not f.unseen))

    def learn(self, decision: Decision, released: ReleasedBooking, outcome: Outcome) -> None:
        seen, queue = self._first_tokens.setdefault(decision.engine, _FirstTokens()), self._queue(decision.engine)
        self._learn_step(decision.engine, seen.steps.close(released.done_s))
        beside_ms = seen.prefill_ms - seen.prefill_at.pop(decision.booking, seen.prefill_ms)
        if outcome.ending is not Ending.OK:
            queue.drop(decision.booking)
            return
        queue.reach(decision.booking, released.done_s, self._speed(decision.engine, released.done_s))
        if decision.predicted_s is not None and decision.booking > self._cold_until:
            self._error_alarm.learn_one(decision.predicted_s, released.done_s - decision.dispatched_s)
        output_tokens = outcome.output_tokens
        if decision.request.choices > 1 or not output_tokens:
            return  # usage counts all choices together
        if released.first_token_s is not None:
            self._learn_decode(released, output_tokens, beside_ms)
        elif not released.booking.streamed:
            self._learn_whole(decision, released, outcome, output_tokens)

    def _learn_step(self, engine: EngineId, step: EngineStep | None) -> None:
        if step is None or not step.clean or step.duration_s <= 0:
            return
        x = step.requests, step.miss_tokens / KILO, step.hit_tokens / KILO, step.token_pairs / KILO**2
        measured_ms = step.duration_s * MS
        slowness = self._learn_slowness(engine, measured_ms, self._model.prefill_ms(*x), step.first_s)
        self._model.learn_prefill(*x, measured_ms / slowness)

    def _learn_decode(self, released: ReleasedBooking, output_tokens: int, beside_ms: float) -> None:
        """`beside_ms`: prefill of others whose first token came while this one decoded."""
        assert released.first_token_s is not None
        others, context_tokens = self._company(released)
        decode_ms = (released.done_s - released.first_token_s) * MS / self._speeds.predict_one(released.booking.engine)
        self._model.learn_decode(output_tokens, others, context_tokens / KILO, decode_ms, beside_ms)

    def _learn_whole(self, decision: Decision, released: ReleasedBooking, outcome: Outcome, output_tokens: int) -> None:
        f = self._features(decision)
        if f is None:
            return
        prompt_tokens = outcome.prompt_tokens or decision.prompt_tokens
        hit_tokens = decision.hit_tokens if outcome.cached_tokens is None else outcome.cached_tokens
        miss, hit, spread = work_of(max(0.0, prompt_tokens - hit_tokens), hit_tokens)
        others, context_tokens = self._company(released)
        x = 1 + f.waiting + f.unseen, f.backlog_tokens / KILO + miss, hit, spread
        decode = output_tokens, others, context_tokens / KILO
        measured_ms = max(0.0, released.done_s - decision.dispatched_s) * MS
        decode_ms = self._model.decode_ms(*decode)
        expected_ms = self._model.prefill_ms(*x) + decode_ms
        slowness = self._learn_slowness(decision.engine, measured_ms, expected_ms, released.done_s)
        self._duplication.answered(decode_ms * slowness, measured_ms)
        self._model.learn_whole(*x, *decode, measured_ms / slowness)

    def _learn_slowness(self, engine: EngineId, measured_ms: float, expected_ms: float, now: float) -> float:
        """Teach the engine's slowness, and return it."""
        if self._model.samples >= SLOWNESS_FROM_SAMPLES:
            self._speeds.learn_one(engine, measured_ms, expected_ms, now)
        return self._speeds.predict_one(engine)

    def _company(self, released: ReleasedBooking) -> tuple[float, float]:
        return crowd(released.other_requests, released.other_context_tokens, released.capacity_tokens)

    def _features(self, decision: Decision) -> Features | None:
        """What this policy saw of the chosen engine; None if another one chose."""
        values = decision.score.features
        return Features(*values) if len(values) == len(Features._fields) else None

    def _queue(self, engine: EngineId) -> VirtualQueue:
        queue = self._queues.get(engine)
        if queue is None:
            queue = self._queues[engine] = VirtualQueue()
        return queue

    def _speed(self, engine: EngineId, now: float) -> float:
        return self._model.tokens_per_s / self._speeds.factor(engine, now)

    def forget(self, engine: EngineId) -> None:
        self._first_tokens.pop(engine, None)
        self._queues.pop(engine, None)
        self._speeds.forget(engine)

    def dump(self, now: float) -> SavedState:
        return {
            "latency": self._model.dump(),
            "engine_speed": self._speeds.dump(now),
            "error_alarm": self._error_alarm.dump(),
            "duplication": self._duplication.dump(),
        }

    def load(self, state: SavedFields, saved_s: float, names: Mapping[str, EngineId]) -> None:
        self._model.load(state.fields("latency"))
        self._speeds.load(state.fields("engine_speed"), saved_s, names)
        self._error_alarm.load(state.fields("error_alarm"))
        self._duplication.load(state.fields("duplication"))

    def describe(self, engine: EngineId) -> dict[str, object]:
        """Coefficients in the latency model's units (ms, thousands of tokens)."""
        return {
            "coefficients": {name: round(value, 6) for name, value in self._model.coefficients._asdict().items()},
            "samples": self._model.samples,
            "trouble": self.trouble(0.0),
            "slowness": round(self._speeds.predict_one(engine), 4),
            **self._duplication.describe(),
        }
