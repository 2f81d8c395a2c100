"""E: what a request costs the whole fleet if it goes to an engine. The engine with the lowest E gets the request.

    E = c (W + R + w + D + X + V + C) + F + S + K                seconds

    W = a (nw + u) + b q                         own wait: the prompts ahead of it and their uncached tokens
    R = s D max(0, ctx + len - cap) / cap        wait for room: what does not fit the cache comes in as others leave
    w = a + b m + al h + at p                    own prefill; p = m (h + m / 2): each token attends to all before it
    D = o (g0 + g1 n~ + g2 ctx~)                 own decoding, slower the more requests and context run beside it
    X = kp n w + kd o (g1 + g2 len) n~           delay of the n requests that are on the engine already
    V = (1 + kf) kv price (b m + at p)           price of computing again what another engine holds
    C = kc (1 + kp n) e (b + at len / 2)         price of what the request pushes out and others want again
    F = kf c (W + R + w)                         the time to the first token counts more than the rest of the latency
    S                                            what it costs to miss the client's own bounds
    K = f c (W + R + w + s D)                    tries that fail before one succeeds, each as long as an answer

V has the factor (1 + kf) as well, because the time that it stands for is others' time to the first token. The predicted
latency of the request itself is c (W + R + w + s D), where s stretches decoding by the prefill of others beside it; it
is 1 on an idle engine. E counts D without s, because X already prices that delay for the request that causes it.

    len, m, h    prompt tokens of the request; m of them are uncached and h are cached on the engine
    o            expected output tokens of the request
    n, ctx, cap  requests in flight on the engine, their prompt tokens, and the size of its cache in tokens
    n~, ctx~     the part of n and ctx that fits the cache and so runs at once (`running_load`)
    nw, u        streamed requests there without a first token; unstreamed ones that are believed not to be computed
                 yet (`virtual_queue`)
    q            uncached prompt tokens of both that are still ahead (`queued_tokens`)
    e            tokens by which the request's session does not fit the engine, beside the others (`core.working_set`)
    c            slowness of the engine (`engine_speed`), or what its silence tells of it (`Cost._slowness`)
    a ... g2, s  coefficients of the latency model (`latency`), one set for all engines, here in seconds and tokens
    f            tries on the engine that are expected to fail before one succeeds (`core.reliability`)
    price        seconds for each second of prefill (`duplication`)
    kf, kp, kd   options lbgr_first_token_weight, lbgr_imposed_prefill, lbgr_imposed_decode
    kc           option lbgr_crowding_weight
    kv           option lbgr_duplication_weight; lbgr_duplication_weight_learned for an engine whose order is not LRU
    S            `objective`

tests/router/policies/lbgr/test_policy.py::test_worked_example computes most terms by hand.

The cost takes most of the time of a decision. So it is one loop over plain numbers (`Cost.rows`), in which what depends
on h alone is computed again only where h changes. Measured by benchmarks/micro/decision_time.py: 40 us for the eight
terms of 16 engines; the same in numpy took 73 us.
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

# In the order of the equation: c W, c R, c w, c D, c X, c V, c C, F, S, K.
TERMS = (
    *("wait", "room", "prefill", "decode", "imposed", "duplication", "crowding"),
    *("first_token", "objective", "failure"),
)
STALL_FACTOR, STALL_S = 3.0, 0.3  # an engine is stalled if it is silent for more than factor * expected + STALL_S


class Features(NamedTuple):
    """What the policy learns from at completion besides the decision. It travels with the score. Counts are in
    requests, lengths in tokens."""

    waiting: float
    """nw: streamed requests without a first token."""
    unseen: float
    """u: unstreamed requests whose prompts are believed not to be computed yet."""
    backlog_tokens: float
    """q: uncached prompt tokens of the waiting and the unseen requests that are believed to be still ahead."""
    over_tokens: float
    """ctx + len - cap, if that is above 0 and the engine is not idle: what the request had to wait for room for."""


class Cost:
    """Computes the terms of each candidate. It learns nothing: it only reads what its arguments have learned.

    queues: the unstreamed prompts that each engine has yet to compute. urgency: kf. penalty: gives S of a request.
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
        """For each candidate one row of `Scores`: E, the predicted latency, h and c, then the TERMS, then the Features.

        price: as in V, from `Duplication.price`. Local names are the symbols above; each of the TERMS has its own name.
        """
        length, o, now = routing.prompt_tokens, routing.output_tokens, routing.now
        a, b, al, g0, g1, g2, at, _ = self._model.per_token_s
        stretch, urgency, penalty = self._model.stretch(now), self._urgency, self._penalty(routing)
        options, factor = self._options, self._speeds.factor
        kp, kd = options.imposed_prefill, options.imposed_decode
        excess, again = routing.excess_tokens, options.crowding_weight * (b + at * length / 2)
        price *= 1.0 + urgency  # (1 + kf) price
        lru, learned = price * options.duplication_weight, price * options.duplication_weight_learned
        slower = o * (g1 + g2 * length)  # o (g1 + g2 len): the delay of each request that decodes beside it
        tokens_per_s, h, m, computed, own = self._model.tokens_per_s, -1.0, 0.0, 0.0, 0.0
        others: float  # n~
        rows: list[float] = []
        for view, hit in candidates:
            engine, info, n, waiting, tokens, context, capacity, head, head_s, oldest, _, _, odds = view
            c, others, unseen, q, wait = factor(engine, now), n, 0, 0.0, 0.0  # waiting: nw; unseen: u
            if head is not None or oldest is not None:
                if oldest is not None or now - head_s > STALL_S:
                    c = self._slowness(view, c, now)
                speed = tokens_per_s / c
                if oldest is not None:
                    unseen, q = self._unseen(engine, now, speed)
                if head is not None:
                    q += queued_tokens(tokens, head.prompt_tokens - head.hit_tokens, (now - head_s) * speed)
                wait = c * (a * (waiting + unseen) + b * q)  # c W
            over = context + length - capacity
            if context > capacity:
                others, context = running_load(n, context, capacity)  # n~, ctx~
            if hit != h:
                h, m = hit, length - hit
                computed = b * m + at * m * (h + m / 2)  # b m + at p
                own = a + computed + al * h  # w
            prefill = c * own  # c w
            decode = c * o * (g0 + g1 * others + g2 * context)  # c D
            rest_s = stretch * decode if n else decode  # c s D
            if over < 0 or not n:  # an empty engine has room for any prompt
                over = 0.0
            room = rest_s * over / capacity  # c R
            imposed = c * (kp * n * own + kd * (slower * others))  # c X
            duplication = c * (lru if info.order in LRU_ORDERS else learned) * computed  # c V
            crowding = 0.0  # c C
            if excess and engine in excess:
                crowding = c * again * (1.0 + kp * n) * excess[engine]
            first_s = wait + room + prefill  # predicted time to the first token
            first_token, objective = urgency * first_s, penalty(first_s, rest_s) if penalty else 0.0  # F, S
            total_s = first_s + rest_s  # predicted latency
            failure = odds * total_s  # K
            e = first_s + decode + imposed + duplication + crowding + first_token + objective + failure
            # fmt: off
            rows += (e, total_s, h, c, wait, room, prefill, decode, imposed, duplication, crowding, first_token,
                     objective, failure, waiting, unseen, q, over)
            # fmt: on
        return array("d", pack(f"{len(rows)}d", *rows))  # a third of the time that array takes to read a list

    def _unseen(self, engine: EngineId, now: float, speed: float) -> tuple[int, float]:
        """(u, its part of q): what is left of the engine's virtual queue."""
        queue = self._queues.get(engine)
        return queue.ahead(now, speed) if queue else (0, 0.0)

    def _slowness(self, view: EngineView, usual: float, now: float) -> float:
        """c, raised if the engine is silent for too long. No answer of a stalled engine will ever come to teach it.

        usual: c as learned.
        """
        slow, head, oldest = usual, view.head, view.oldest_unstreamed
        if head is not None:
            silent_s = now - view.head_since_s
            if silent_s > STALL_S:
                expected_ms = self._model.prefill_ms(1, *prefill_inputs(head.miss_tokens, head.hit_tokens))
                slow = max(slow, self._stalled(view.engine, silent_s, expected_ms, usual))
        if oldest is not None and oldest.predicted_s is not None:
            silent_s = now - view.silent_since_s
            if silent_s > STALL_S:
                expected_ms = oldest.predicted_s * MS / usual
                slow = max(slow, self._stalled(view.engine, silent_s, expected_ms, usual))
        return slow

    def _stalled(self, engine: EngineId, silent_s: float, expected_ms: float, usual: float) -> float:
        """The slowness that the silence of a stalled engine tells of; 0 if the engine is not stalled."""
        if silent_s <= STALL_FACTOR * usual * expected_ms / MS + STALL_S:
            return 0.0
        return self._speeds.stalled(engine, silent_s * MS, expected_ms)


def prefill_inputs(miss_tokens: float, hit_tokens: float) -> tuple[float, float, float]:
    """(miss, hit, spread) of one prompt in the latency model's units: uncached and cached tokens in thousands, and p,
    the pairs of an uncached token and a token before it, in millions."""
    miss, hit = miss_tokens / KILO, hit_tokens / KILO
    return miss, hit, miss * (hit + miss / 2)


def running_load(requests: float, context_tokens: float, capacity_tokens: float) -> tuple[float, float]:
    """(n~, ctx~): the requests and the context that run at once, while the others wait for room in the cache.

    n~ = n min(1, cap / ctx),  ctx~ = min(ctx, cap)
    """
    if context_tokens <= capacity_tokens:
        return requests, context_tokens
    return requests * capacity_tokens / context_tokens, capacity_tokens


def queued_tokens(queue_tokens: float, head_tokens: float, done_tokens: float) -> float:
    """q = max(0, Q - min(m_head, age_head * speed)): tokens of the streamed queue, less what is computed of its head.

    Q: uncached tokens of all prompts in the queue; m_head: those of its head, the oldest prompt; done_tokens:
    age_head * speed, what the engine can have computed since it began the head.
    """
    left = queue_tokens - max(0.0, min(head_tokens, done_tokens))
    return left if left > 0.0 else 0.0
