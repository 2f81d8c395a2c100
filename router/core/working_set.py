"""The working set: how much of each engine's cache the sessions are going to want again.

A session's own tokens are its context without what it shares with others (`Session.own_tokens`). On the engine of its
last request they count in full while a request of it runs, and while it is idle by the chance that it comes back within
the horizon (`learners.return_chance`):

    W_i = sum of own tokens of running sessions + sum of own tokens x P(back within T) of idle ones       tokens
    T   = what the caches hold / tokens computed a second that were never computed before                 seconds

T is how long the caches would remember if they forgot nothing that is needed again. A cache that is too small for its
sessions remembers for a shorter time, since it computes the same again and again; T does not shrink with that, so
sessions that could all be kept are seen as such even while none is.

What returns with certainty is worth keeping room for; what may or may not return is not. `protects` says whether an
idle token that is expected back is one of the first kind: whether its chance, in the mean over the expectation, is
above one half. With Mooncake's conversations it is .2, with recorded agents .9. Only then does the rest of the router
heed W: the policy lbgr prices what a request would push out, and `core.holding` lets requests wait. And only for
requests of which much is to be computed (`is_heavy`): generating a token takes as long as computing some hundreds, so
below HEAVY tokens for each one generated, computing again what was lost is a small part of the answer.

A decision costs O(1) here: W is kept up to date with each event, and chances are computed anew once a second.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

from router.learners.return_chance import EDGES_S, INTERVALS, ReturnChance
from router.types import EngineId, EngineView, Stop

RENEW_S = 1.0  # how long chances are used
RATE_S = 120.0  # the half-life of the rate of new tokens
LIKELY = 0.5
HEAVY = 100.0


def is_heavy(prompt_tokens: float, output_tokens: float) -> bool:
    """Whether it takes long to compute so many tokens of a prompt, against an answer of so many."""
    return prompt_tokens > HEAVY * output_tokens


@dataclass(slots=True, eq=False)
class _Share:
    """What one session wants of one engine."""

    engine: EngineId
    tokens: float
    kind: Stop = Stop.UNKNOWN
    """Why its last answer ended."""
    since_s: float = math.inf
    """When that was; infinite while a request runs."""
    interval: int = 0
    """That of its age, while it is idle."""


class _EngineSet:
    """What all sessions want of one engine, in tokens."""

    def __init__(self) -> None:
        self.running = 0.0
        self.idle = {kind: [0.0] * INTERVALS for kind in Stop}
        self.expected = 0.0
        """The sum of `idle`, each by its chance."""


class WorkingSet:
    """Call the first four methods as sessions begin and end requests; times are those of the decisions, seconds."""

    def __init__(self) -> None:
        self._chance = ReturnChance()
        self._shares: dict[str, _Share] = {}  # by session
        self._ages = tuple(OrderedDict[_Share, None]() for _ in range(INTERVALS))
        """The idle ones by the interval of their age, each oldest first."""
        self._engines: dict[EngineId, _EngineSet] = {}
        self._chances = {kind: [0.0] * INTERVALS for kind in Stop}
        self._renewed_s = -math.inf
        self._new_tokens, self._new_s, self._began_s = 0.0, 0.0, math.nan
        self.protects = False
        """Whether what idle sessions have cached is worth keeping room for."""

    # --- the sessions -------------------------------------------------------------------------------------------

    def came(self, session: str, now: float) -> None:
        """A request of the session has come, which is not placed yet. It wants nothing of any engine until it is."""
        self._age(now)
        share = self._shares.get(session)
        if share is not None and share.since_s < math.inf:
            if share.interval < INTERVALS:
                self._chance.back(share.kind, share.interval)
            self.forget(session)

    def runs(self, session: str, engine: EngineId, own_tokens: float, new_tokens: float, now: float) -> None:
        """A request of the session was placed. new_tokens: what it will compute that was never computed before."""
        self.came(session, now)
        self.forget(session)
        self._shares[session] = share = _Share(engine, own_tokens)
        self._add(share, 1.0)
        self.computes(new_tokens, now)

    def idles(self, session: str, kind: Stop, own_tokens: float, now: float) -> None:
        """The session's last answer has ended, for the reason `kind`."""
        share = self._shares.get(session)
        if share is None:
            return
        self.forget(session)
        self._shares[session] = share = _Share(share.engine, own_tokens, kind, now)
        self._add(share, 1.0)
        self._ages[0][share] = None

    def forget(self, session: str) -> None:
        """The session wants nothing any more. An unknown one is nothing new."""
        share = self._shares.pop(session, None)
        if share is not None:
            self._add(share, -1.0)
            if share.interval < INTERVALS:
                self._ages[share.interval].pop(share, None)

    def engine_gone(self, engine: EngineId) -> None:
        """What the engine had cached is lost. What runs there is told of as usual."""
        for session in [name for name, share in self._shares.items() if share.engine == engine]:
            self.forget(session)
        self._engines.pop(engine, None)

    def computes(self, new_tokens: float, now: float) -> None:
        """So many tokens will be computed, or were generated, that never were before."""
        self._new_tokens = self._faded(now) + new_tokens
        self._new_s = max(self._new_s, now)

    # --- what they want -----------------------------------------------------------------------------------------

    def renew(self, views: Sequence[EngineView], now: float) -> None:
        """Bring all figures up to date, if that has not been done for RENEW_S. views: the engines."""
        if now - self._renewed_s < RENEW_S:
            return
        self._renewed_s = now
        self._age(now)
        horizon_s = self.horizon_s(views, now)
        self._chances = {kind: self._chance.within(kind, horizon_s) for kind in Stop}
        expected = certain = 0.0
        for state in self._engines.values():
            state.expected = 0.0
            for kind, tokens in state.idle.items():
                for each, chance in zip(tokens, self._chances[kind], strict=True):
                    state.expected += each * chance
                    certain += each * chance * chance
            expected += state.expected
        if expected > 0:  # while nobody is idle, what was last known of those who were still holds
            self.protects = certain > LIKELY * expected

    def horizon_s(self, views: Sequence[EngineView], now: float) -> float:
        """T; infinite while nothing new is computed."""
        elapsed_s = now - self._began_s
        if not elapsed_s > 0:
            return math.inf
        mean_life_s = RATE_S / math.log(2)
        span_s = mean_life_s * -math.expm1(-elapsed_s / mean_life_s)
        rate = self._faded(now) / span_s
        return sum(view.capacity_tokens for view in views) / rate if rate > 0 else math.inf

    def excess(self, view: EngineView, session: str | None, own_tokens: float) -> float:
        """By how many tokens W would be above the engine's cache if a request came there with so many of its own, at
        most those; 0: all fit. session: whose request it is, which counts only once."""
        state = self._engines.get(view.engine)
        wanted = 0.0 if state is None else state.running + state.expected
        share = None if session is None else self._shares.get(session)
        if share is not None and share.engine == view.engine:
            wanted -= share.tokens * self._weight(share)
        return min(own_tokens, max(0.0, wanted + own_tokens - view.capacity_tokens))

    # --- bookkeeping --------------------------------------------------------------------------------------------

    def _weight(self, share: _Share) -> float:
        """The part of its tokens that counts."""
        if share.since_s == math.inf:
            return 1.0
        return self._chances[share.kind][share.interval] if share.interval < INTERVALS else 0.0

    def _add(self, share: _Share, sign: float) -> None:
        state = self._engines.get(share.engine)
        if state is None:
            state = self._engines[share.engine] = _EngineSet()
        tokens = sign * share.tokens
        if share.since_s == math.inf:
            state.running += tokens
        elif share.interval < INTERVALS:
            state.idle[share.kind][share.interval] += tokens
            state.expected += tokens * self._chances[share.kind][share.interval]

    def _age(self, now: float) -> None:
        """Move the idle sessions that have got older to the intervals of their ages."""
        for interval, shares in enumerate(self._ages):
            while shares and now - next(iter(shares)).since_s >= EDGES_S[interval]:
                share, _ = shares.popitem(last=False)
                self._chance.stayed(share.kind, interval)
                self._add(share, -1.0)
                share.interval += 1
                self._add(share, 1.0)
                if share.interval < INTERVALS:
                    self._ages[share.interval][share] = None

    def _faded(self, now: float) -> float:
        """The new tokens of the past, by their age."""
        if math.isnan(self._began_s):
            self._began_s = self._new_s = now
        return self._new_tokens * math.exp2(-max(0.0, now - self._new_s) / RATE_S)
