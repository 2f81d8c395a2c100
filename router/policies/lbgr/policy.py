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
latency online, route greedily by it. The estimator is our own; docs/design.md derives it and says where it differs.
"""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from struct import pack

from router.config import Config
from router.learners.prediction_error import ErrorAlarm
from router.policies.base import Policy, RoutingContext
from router.policies.lbgr.duplication import Duplication
from router.policies.lbgr.engine_speed import EngineSpeed
from router.policies.lbgr.engine_steps import EngineStep, EngineSteps
from router.policies.lbgr.features import Features, crowd, queued_tokens
from router.policies.lbgr.latency import LatencyModel
from router.policies.lbgr.objective import aims
from router.policies.lbgr.score_table import ScoreTable
from router.policies.lbgr.shortlist import MOST, shortlist
from router.policies.lbgr.virtual_queue import VirtualQueue
from router.prefix.index import LRU_ORDERS
from router.saved_state import Fields, State
from router.types import Candidate, Decision, Ending, EngineId, EngineView, Outcome, ReleasedBooking, Unit

MS, KILO = 1000.0, 1000.0  # the latency model's units: milliseconds, thousands of tokens

TERMS = "wait", "room", "prefill", "decode", "imposed", "duplication", "first_token", "objective"
STALL_FACTOR, STALL_S = 3.0, 0.3  # silence beyond factor * expected + STALL_S is a stall
SCALE_FROM_SAMPLES = 8  # before that the model's errors would be taken for the engines'


@dataclass(slots=True)
class _Seen:
    """What one engine's events add up to."""

    virtual_queue: VirtualQueue = field(default_factory=VirtualQueue)
    steps: EngineSteps = field(default_factory=EngineSteps)
    prefill_ms: float = 0.0
    """Prefill work of all first tokens so far, as predicted, at usual speed."""
    prefill_at: dict[int, float] = field(default_factory=dict)
    """The same when a request's first token came, by its booking; of requests in flight."""


class Lbgr(Policy):
    """The estimator and rule above. Keeps one small entry an engine; load and lengths come from the fleet's views."""

    name = "lbgr"
    unit = Unit.SECONDS

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self._imposed_prefill, self._imposed_decode = config.lbgr_imposed_prefill, config.lbgr_imposed_decode
        self._urgency, self._penalty = aims(config)
        self._model = LatencyModel()
        self._speed_of = EngineSpeed()
        self._duplication = Duplication()
        self._seen: dict[EngineId, _Seen] = {}
        self._error_alarm = ErrorAlarm(config.lbgr_error_bound)
        self._cold_until = 0  # the last booking of which nothing could be predicted

    def trouble(self, now: float) -> str | None:  # noqa: ARG002
        if self._cold:
            return "cold"
        return "error" if self._error_alarm.alarm else None

    @property
    def _cold(self) -> bool:
        return self._model.samples < self.config.lbgr_cold_samples

    def choose(self, routing: RoutingContext, candidates: Sequence[Candidate]) -> ScoreTable:
        price = self._duplication.price(candidates)
        places: Sequence[int] = range(len(candidates))
        weighed = candidates
        if len(candidates) > MOST:
            loads = [view.in_flight for view, _ in candidates]
            places = shortlist([hit for _, hit in candidates], loads, routing.chance)
            weighed = [candidates[place] for place in places]
        numbers = self._weigh(routing, price, weighed)
        return ScoreTable(candidates, TERMS, numbers, places, partial(self._weigh, routing, price))

    def _weigh(self, routing: RoutingContext, price: float, candidates: Sequence[Candidate]) -> array[float]:
        """E and its terms of each candidate, rows as `ScoreTable` has them. price: V over kv and the prefill.

        Most of a decision's time: hence one loop over plain numbers, in which what hangs on h alone is worked out anew
        only where h changes.
        """
        length, o, now = routing.prompt_tokens, routing.output_tokens, routing.now
        a, b, al, g0, g1, g2, at, _ = self._model.per_token_s
        stretch, urgency, missed = self._model.stretch, self._urgency, self._penalty(routing)
        kp, kd, factor = self._imposed_prefill, self._imposed_decode, self._speed_of.factor
        price *= 1.0 + urgency
        lru, learned = price * self.config.lbgr_duplication_weight, price * self.config.lbgr_duplication_weight_learned
        slower = o * (g1 + g2 * length)  # decoding of each other request
        tokens_per_s, h, m, computed, own = self._model.tokens_per_s, -1.0, 0.0, 0.0, 0.0
        others: float
        rows: list[float] = []
        for view, hit in candidates:
            engine, info, n, waiting, tokens, context, capacity, head, head_s, oldest, _, _ = view
            c, others, unseen, q, wait = factor(engine, now), n, 0, 0.0, 0.0
            if head is not None or oldest is not None:
                if oldest is not None or now - head_s > STALL_S:
                    c = self._slowness(view, c, now)
                speed = tokens_per_s / c
                if oldest is not None:
                    unseen, q = self._unseen(engine, now, speed)
                if head is not None:
                    q += queued_tokens(tokens, head.prompt_tokens - head.hit_tokens, (now - head_s) * speed)
                wait = c * (a * (waiting + unseen) + b * q)
            over = context + length - capacity
            if context > capacity:
                others, context = crowd(n, context, capacity)
            if hit != h:
                h, m = hit, length - hit
                computed = b * m + at * m * (h + m / 2)
                own = a + computed + al * h
            prefill = c * own
            decode = c * o * (g0 + g1 * others + g2 * context)
            rest_s = stretch * decode
            room = rest_s * over / capacity if over > 0 and n else 0.0
            imposed = c * (kp * n * own + kd * (slower * others))
            duplication = c * (lru if info.order in LRU_ORDERS else learned) * computed
            first_s = wait + room + prefill
            urgent, cost = urgency * first_s, missed(first_s, rest_s) if missed else 0.0
            e = first_s + decode + imposed + duplication + urgent + cost
            total_s = first_s + rest_s
            # fmt: off
            rows += (e, total_s, h, c, wait, room, prefill, decode, imposed, duplication, urgent, cost,
                     waiting, unseen, q)
            # fmt: on
        return array("d", pack(f"{len(rows)}d", *rows))  # a third of what the array takes to read a list

    def _unseen(self, engine: EngineId, now: float, speed: float) -> tuple[int, float]:
        """u and their part of q."""
        seen = self._seen.get(engine)
        return seen.virtual_queue.ahead(now, speed) if seen else (0, 0.0)

    def _slowness(self, view: EngineView, usual: float, now: float) -> float:
        """c, raised if the engine is silent: no completion will ever come from a stalled one to tell so."""
        slow, head, oldest = usual, view.head, view.oldest_unstreamed
        if head is not None:
            silent_s = now - view.head_since_s
            if silent_s > STALL_S:
                expected_ms = self._model.prefill_ms(1, *_lengths(head.miss_tokens / KILO, head.hit_tokens / KILO))
                slow = max(slow, self._stalled(view.engine, silent_s, expected_ms, usual))
        if oldest is not None and oldest.predicted_s is not None:
            silent_s = now - view.silent_since_s
            if silent_s > STALL_S:
                expected_ms = oldest.predicted_s * MS / usual
                slow = max(slow, self._stalled(view.engine, silent_s, expected_ms, usual))
        return slow

    def _stalled(self, engine: EngineId, silent_s: float, expected_ms: float, usual: float) -> float:
        if silent_s <= STALL_FACTOR * usual * expected_ms / MS + STALL_S:
            return 0.0
        return self._speed_of.stalled(engine, silent_s * MS, expected_ms)

    # --- events -------------------------------------------------------------------------------------------------

    def dispatched(self, decision: Decision) -> None:
        if self._cold:
            self._cold_until = decision.booking
        best = decision.longest_tokens / max(1.0, decision.prompt_tokens)
        self._duplication.dispatched(best)
        if not decision.request.stream:
            seen = self._seen.setdefault(decision.engine, _Seen())
            miss_tokens = decision.prompt_tokens - decision.hit_tokens
            seen.virtual_queue.add(
                decision.booking,
                miss_tokens,
                decision.dispatched_s,
                self._speed(decision.engine, decision.dispatched_s),
            )

    def first_token(self, decision: Decision, now: float) -> None:
        seen = self._seen.setdefault(decision.engine, _Seen())
        seen.virtual_queue.reach(decision.booking, now, self._speed(decision.engine, now))
        miss, hit = (decision.prompt_tokens - decision.hit_tokens) / KILO, decision.hit_tokens / KILO
        seen.prefill_ms += self._model.prefill_ms(1, *_lengths(miss, hit))
        seen.prefill_at[decision.booking] = seen.prefill_ms
        f = self._features(decision)
        self._learn_step(decision.engine, seen.steps.add(decision, now, clean=f is not None and not f.unseen))

    def learn(self, decision: Decision, released: ReleasedBooking, outcome: Outcome) -> None:
        seen = self._seen.setdefault(decision.engine, _Seen())
        self._learn_step(decision.engine, seen.steps.close(released.done_s))
        beside_ms = seen.prefill_ms - seen.prefill_at.pop(decision.booking, seen.prefill_ms)
        if outcome.ending is not Ending.OK:
            seen.virtual_queue.drop(decision.booking)
            return
        seen.virtual_queue.reach(decision.booking, released.done_s, self._speed(decision.engine, released.done_s))
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
        decode_ms = (
            (released.done_s - released.first_token_s) * MS / self._speed_of.predict_one(released.booking.engine)
        )
        self._model.learn_decode(output_tokens, others, context_tokens / KILO, decode_ms, beside_ms)

    def _learn_whole(self, decision: Decision, released: ReleasedBooking, outcome: Outcome, output_tokens: int) -> None:
        f = self._features(decision)
        if f is None:
            return
        prompt_tokens = outcome.prompt_tokens or decision.prompt_tokens
        hit_tokens = decision.hit_tokens if outcome.cached_tokens is None else outcome.cached_tokens
        miss, hit = max(0.0, prompt_tokens - hit_tokens) / KILO, hit_tokens / KILO
        others, context_tokens = self._company(released)
        x = 1 + f.waiting + f.unseen, f.backlog_tokens / KILO + miss, hit, _lengths(miss, hit)[2]
        decode = output_tokens, others, context_tokens / KILO
        measured_ms = max(0.0, released.done_s - decision.dispatched_s) * MS
        decode_ms = self._model.decode_ms(*decode)
        expected_ms = self._model.prefill_ms(*x) + decode_ms
        slowness = self._learn_slowness(decision.engine, measured_ms, expected_ms, released.done_s)
        self._duplication.answered(decode_ms * slowness, measured_ms)
        self._model.learn_whole(*x, *decode, measured_ms / slowness)

    def _learn_slowness(self, engine: EngineId, measured_ms: float, expected_ms: float, now: float) -> float:
        """Teach the engine's slowness, and return it."""
        if self._model.samples >= SCALE_FROM_SAMPLES:
            self._speed_of.learn_one(engine, measured_ms, expected_ms, now)
        return self._speed_of.predict_one(engine)

    def _company(self, released: ReleasedBooking) -> tuple[float, float]:
        return crowd(released.other_requests, released.other_context_tokens, released.capacity_tokens)

    def _features(self, decision: Decision) -> Features | None:
        """What this policy saw of the chosen engine; None if another one chose."""
        values = decision.score.features
        return Features(*values) if len(values) == len(Features._fields) else None

    def _speed(self, engine: EngineId, now: float) -> float:
        return self._model.tokens_per_s / self._speed_of.factor(engine, now)

    def forget(self, engine: EngineId) -> None:
        self._seen.pop(engine, None)
        self._speed_of.forget(engine)

    def dump(self, now: float) -> State:
        return {
            "latency": self._model.dump(),
            "engine_speed": self._speed_of.dump(now),
            "error_alarm": self._error_alarm.dump(),
            "duplication": self._duplication.dump(),
        }

    def load(self, state: Fields, saved_s: float, names: Mapping[str, EngineId]) -> None:
        self._model.load(state.fields("latency"))
        self._speed_of.load(state.fields("engine_speed"), saved_s, names)
        self._error_alarm.load(state.fields("error_alarm"))
        self._duplication.load(state.fields("duplication"))

    def describe(self, engine: EngineId) -> dict[str, object]:
        """Coefficients in the latency model's units (ms, thousands of tokens)."""
        return {
            "coefficients": {name: round(value, 6) for name, value in self._model.coefficients._asdict().items()},
            "samples": self._model.samples,
            "trouble": self.trouble(0.0),
            "slowness": round(self._speed_of.predict_one(engine), 4),
            **self._duplication.describe(),
        }


def _lengths(miss: float, hit: float) -> tuple[float, float, float]:
    """Of one prompt: uncached and cached tokens, and pairs of an uncached token and one before it."""
    return miss, hit, miss * (hit + miss / 2)
