"""lbgr, learning-based greedy routing: each request goes to the engine where it costs the whole fleet the least time.

The idea: from what it has learned the policy predicts, for every engine, how long the request would take there and how
much time it would take from the requests of others. The sum in seconds is the cost of the request on that engine, and
the lowest cost gets the request. Exact ties are drawn. The equation with all its terms stands in `cost`. Of at most 64
engines all are weighed; of more, only those that may well be the best (`shortlist`).

What is learned, and when:

- `latency`: the coefficients of prefill and decoding, one set for all engines, so that a new engine is predicted at
  once. A streamed request teaches prefill by its first token and decoding by its end. An unstreamed request teaches the
  sum of both by its end.
- `engine_speed`: how slow each engine is against the fleet, from the same prefill steps and unstreamed requests.
- `virtual_queue`: the unstreamed prompts that an engine has yet to compute. A streamed request shows by its first token
  that its prompt is computed; an unstreamed one does not. So this queue grows at a dispatch and drains at the learned
  speed, and every first token and every answer corrects it.
- `duplication`: how much of the traffic repeats, at each dispatch; how long unstreamed requests wait, at their end.

A request that had to wait for room in the cache teaches prefill nothing: its first token shows that wait, which can be
a hundred times its prefill. The same holds for the end of an unstreamed one.

Streamed and unstreamed requests wait in one queue, so their prompts are added up, and they share the coefficients. A
step of first tokens in which unstreamed prompts may have been computed too teaches nothing; those prompts teach by
their own end.

A model that knows nothing yet (`cold`), or that is wrong by a multiple (`error`), says so by `trouble`. Another policy
then decides until the model is better. It learns from what that policy places as it does from its own choices.

The idea is that of "Randomization Boosts KV Caching, Learning Balances Query Load" (arXiv 2601.18999): learn the
latency online, and route greedily by it. The estimator is our own; docs/algorithms.md derives it and says where it
differs.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from router.learners.prediction_error import ErrorAlarm
from router.policies.base import Policy, RoutingContext
from router.policies.lbgr.cost import KILO, MS, TERMS, Cost, Features, prefill_inputs, running_load
from router.policies.lbgr.duplication import Duplication
from router.policies.lbgr.engine_speed import EngineSpeed
from router.policies.lbgr.engine_steps import EngineStep, EngineSteps
from router.policies.lbgr.latency import LatencyModel
from router.policies.lbgr.objective import objective_of
from router.policies.lbgr.options import LbgrOptions
from router.policies.lbgr.shortlist import MOST_WEIGHED, shortlist
from router.policies.lbgr.virtual_queue import VirtualQueue
from router.saved_state import SavedFields, SavedState
from router.types import Candidate, Decision, Ending, EngineId, Outcome, ReleasedBooking, Scores, Unit

SLOWNESS_FROM_SAMPLES = 8  # with fewer samples the errors of the model would be taken for slowness of engines


@dataclass(slots=True)
class _FirstTokens:
    """What the first tokens of one engine have shown."""

    steps: EngineSteps = field(default_factory=EngineSteps)
    prefill_ms: float = 0.0
    """Predicted prefill time at usual speed, added up over all first tokens so far."""
    prefill_at: dict[int, float] = field(default_factory=dict)
    """`prefill_ms` as it was at the first token of each request in flight, by booking."""


class Lbgr(Policy[LbgrOptions]):
    """The policy above. It keeps one small entry for each engine; load and lengths come from the fleet's views."""

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
        self._cold_until = 0  # the last booking that was made while the model was cold

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
        if len(candidates) > MOST_WEIGHED:
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
        longest_share = decision.longest_tokens / max(1.0, decision.prompt_tokens)
        self._duplication.dispatched(longest_share)
        if not decision.request.stream:
            miss_tokens = decision.prompt_tokens - decision.hit_tokens
            self._queue(decision.engine).add(
                decision.booking,
                miss_tokens,
                decision.dispatched_s,
                self._speed(decision.engine, decision.dispatched_s),
            )

    def first_token(self, decision: Decision, now: float) -> None:
        first_tokens = self._first_tokens.setdefault(decision.engine, _FirstTokens())
        self._queue(decision.engine).reach(decision.booking, now, self._speed(decision.engine, now))
        miss_tokens = decision.prompt_tokens - decision.hit_tokens
        first_tokens.prefill_ms += self._model.prefill_ms(1, *prefill_inputs(miss_tokens, decision.hit_tokens))
        first_tokens.prefill_at[decision.booking] = first_tokens.prefill_ms
        features = self._features(decision)
        clean = features is not None and not features.unseen and not features.over_tokens
        self._learn_step(decision.engine, first_tokens.steps.add(decision, now, clean=clean))

    def learn(self, decision: Decision, released: ReleasedBooking, outcome: Outcome) -> None:
        first_tokens = self._first_tokens.setdefault(decision.engine, _FirstTokens())
        queue = self._queue(decision.engine)
        self._learn_step(decision.engine, first_tokens.steps.close(released.done_s))
        prefill_ms = first_tokens.prefill_ms
        beside_ms = prefill_ms - first_tokens.prefill_at.pop(decision.booking, prefill_ms)
        if outcome.ending is not Ending.OK:
            queue.drop(decision.booking)
            return
        queue.reach(decision.booking, released.done_s, self._speed(decision.engine, released.done_s))
        if not decision.request.generates:
            return
        if decision.predicted_s is not None and decision.booking > self._cold_until:
            self._error_alarm.learn_one(decision.predicted_s, released.done_s - decision.dispatched_s)
        output_tokens = outcome.output_tokens
        if decision.request.choices > 1 or not output_tokens:
            return  # the usage counts the tokens of all choices together, so it says nothing about one answer
        if released.first_token_s is not None:
            self._learn_decode(released, output_tokens, beside_ms)
        elif not released.booking.streamed:
            self._learn_whole(decision, released, outcome, output_tokens)

    def _learn_step(self, engine: EngineId, step: EngineStep | None) -> None:
        """An engine step that gave first tokens is over; None: no step is."""
        if step is None or not step.clean or step.duration_s <= 0:
            return
        x = step.requests, step.miss_tokens / KILO, step.hit_tokens / KILO, step.token_pairs / KILO**2
        measured_ms = step.duration_s * MS
        slowness = self._learn_slowness(engine, measured_ms, self._model.prefill_ms(*x), step.first_s)
        self._model.learn_prefill(*x, measured_ms / slowness)

    def _learn_decode(self, released: ReleasedBooking, output_tokens: int, beside_ms: float) -> None:
        """A streamed answer is over. beside_ms: prefill time of others whose first token came while it decoded."""
        assert released.first_token_s is not None
        others, context_tokens = self._load_beside(released)
        decode_ms = (released.done_s - released.first_token_s) * MS / self._speeds.predict_one(released.booking.engine)
        self._model.learn_decode(output_tokens, others, context_tokens / KILO, decode_ms, beside_ms, released.done_s)

    def _learn_whole(self, decision: Decision, released: ReleasedBooking, outcome: Outcome, output_tokens: int) -> None:
        """An unstreamed answer is over."""
        features = self._features(decision)
        if features is None or features.over_tokens:
            return
        prompt_tokens = outcome.prompt_tokens or decision.prompt_tokens
        hit_tokens = decision.hit_tokens if outcome.cached_tokens is None else outcome.cached_tokens
        miss, hit, spread = prefill_inputs(max(0.0, prompt_tokens - hit_tokens), hit_tokens)
        others, context_tokens = self._load_beside(released)
        requests = 1 + features.waiting + features.unseen
        x = requests, features.backlog_tokens / KILO + miss, hit, spread
        decode = output_tokens, others, context_tokens / KILO
        measured_ms = max(0.0, released.done_s - decision.dispatched_s) * MS
        decode_ms = self._model.decode_ms(*decode)
        expected_ms = self._model.prefill_ms(*x) + decode_ms
        slowness = self._learn_slowness(decision.engine, measured_ms, expected_ms, released.done_s)
        self._duplication.answered(decode_ms * slowness, measured_ms)
        self._model.learn_whole(*x, *decode, measured_ms / slowness)

    def _learn_slowness(self, engine: EngineId, measured_ms: float, expected_ms: float, now: float) -> float:
        """Learn the engine's slowness from one sample, and return it."""
        if self._model.samples >= SLOWNESS_FROM_SAMPLES:
            self._speeds.learn_one(engine, measured_ms, expected_ms, now)
        return self._speeds.predict_one(engine)

    def _load_beside(self, released: ReleasedBooking) -> tuple[float, float]:
        """(n~, ctx~): the requests and the context that ran beside this request, in the mean over its time."""
        return running_load(released.other_requests, released.other_context_tokens, released.capacity_tokens)

    def _features(self, decision: Decision) -> Features | None:
        """What this policy knew of the chosen engine; None if the decision carries the score of another policy."""
        values = decision.score.features
        return Features(*values) if len(values) == len(Features._fields) else None

    def _queue(self, engine: EngineId) -> VirtualQueue:
        queue = self._queues.get(engine)
        if queue is None:
            queue = self._queues[engine] = VirtualQueue()
        return queue

    def _speed(self, engine: EngineId, now: float) -> float:
        """Uncached tokens that the engine computes in a second."""
        return self._model.tokens_per_s / self._speeds.factor(engine, now)

    def forget(self, engine: EngineId) -> None:
        self._first_tokens.pop(engine, None)
        self._queues.pop(engine, None)
        self._speeds.forget(engine)

    def dump(self, now: float) -> SavedState:
        return {
            "latency": self._model.dump(now),
            "engine_speed": self._speeds.dump(now),
            "error_alarm": self._error_alarm.dump(),
            "duplication": self._duplication.dump(),
        }

    def load(self, state: SavedFields, saved_s: float, names: Mapping[str, EngineId]) -> None:
        self._model.load(state.fields("latency"), saved_s)
        self._speeds.load(state.fields("engine_speed"), saved_s, names)
        self._error_alarm.load(state.fields("error_alarm"))
        self._duplication.load(state.fields("duplication"))

    def describe(self, engine: EngineId) -> dict[str, object]:
        """The coefficients are in the units of `latency`: ms and thousands of tokens."""
        return {
            "coefficients": {name: round(value, 6) for name, value in self._model.coefficients._asdict().items()},
            "samples": self._model.samples,
            "trouble": self.trouble(0.0),
            "slowness": round(self._speeds.predict_one(engine), 4),
            **self._duplication.describe(),
        }
