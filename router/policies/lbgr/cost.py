"""E, what a request costs the whole fleet on each engine, term by term: the equations of `policy`, most of the time of
a decision.

    E = c (W + R + w + D + X + V) + F + S                        seconds

Hence one loop over plain numbers (`Cost.rows`), in which what hangs on h alone is worked out anew only where h changes.
Measured by benchmarks/micro/decision_time.py: 40 us for the eight terms of 16 engines; the same in numpy took 73 us.
"""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from struct import pack
from typing import NamedTuple

from router.policies.base import RoutingContext
from router.policies.lbgr.engine_speed import EngineSpeed
from router.policies.lbgr.latency import LatencyModel
from router.policies.lbgr.objective import Penalty
from router.policies.lbgr.options import LbgrOptions
from router.policies.lbgr.virtual_queue import VirtualQueue
from router.prefix.index import LRU_ORDERS
from router.types import Candidate, EngineId, EngineView

MS, KILO = 1000.0, 1000.0  # the latency model's units: milliseconds, thousands of tokens

TERMS = "wait", "room", "prefill", "decode", "imposed", "duplication", "first_token", "objective"
STALL_FACTOR, STALL_S = 3.0, 0.3  # silence beyond factor * expected + STALL_S is a stall


class Features(NamedTuple):
    """What completion learns from and no Decision tells; travels with the score. Counts in requests, lengths in
    tokens."""

    waiting: float
    """nw: streamed ones without a first token."""
    unseen: float
    """u: unstreamed ones believed not to be computed yet."""
    backlog_tokens: float
    """q: uncached prompt tokens believed to lie ahead, of waiting and unseen ones."""


class Cost:
    """The terms of each candidate. All that it is given is learned elsewhere and only read here.

    queues: the unstreamed prompts that each engine has yet to compute. urgency: kf. penalty: S for a request.
    """

    def __init__(
        self,
        options: LbgrOptions,
        model: LatencyModel,
        speeds: EngineSpeed,
        queues: Mapping[EngineId, VirtualQueue],
        urgency: float,
        penalty: Penalty,
    ) -> None:
        self._options, self._model, self._speeds, self._queues = options, model, speeds, queues
        self._urgency, self._penalty = urgency, penalty

    def rows(self, routing: RoutingContext, price: float, candidates: Sequence[Candidate]) -> array[float]:
        """For each candidate E, the predicted latency, h and c, then the TERMS, then the Features: rows of `Scores`.

        price: V over (1 + kf) kv and the prefill.
        """
        length, o, now = routing.prompt_tokens, routing.output_tokens, routing.now
        a, b, al, g0, g1, g2, at, _ = self._model.per_token_s
        stretch, urgency, missed = self._model.stretch, self._urgency, self._penalty(routing)
        options, factor = self._options, self._speeds.factor
        kp, kd = options.imposed_prefill, options.imposed_decode
        price *= 1.0 + urgency
        lru, learned = price * options.duplication_weight, price * options.duplication_weight_learned
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
        queue = self._queues.get(engine)
        return queue.ahead(now, speed) if queue else (0, 0.0)

    def _slowness(self, view: EngineView, usual: float, now: float) -> float:
        """c, raised if the engine is silent: no completion will ever come from a stalled one to tell so."""
        slow, head, oldest = usual, view.head, view.oldest_unstreamed
        if head is not None:
            silent_s = now - view.head_since_s
            if silent_s > STALL_S:
                expected_ms = self._model.prefill_ms(1, *work_of(head.miss_tokens, head.hit_tokens))
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
        return self._speeds.stalled(engine, silent_s * MS, expected_ms)


def work_of(miss_tokens: float, hit_tokens: float) -> tuple[float, float, float]:
    """Of one prompt in the latency model's units: uncached and cached tokens, thousands, and their spread, millions of
    pairs of an uncached token and one before it."""
    miss, hit = miss_tokens / KILO, hit_tokens / KILO
    return miss, hit, miss * (hit + miss / 2)


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
