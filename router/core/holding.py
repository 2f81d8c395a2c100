"""Which requests wait before they are placed, so that not all sessions push each other out of the caches.

Where the sessions together want more than the caches hold, every session finds its cache lost when it comes back, and
what is computed for it is lost again before its next request: the fleet works for nothing, and does less the more users
there are. Then some sessions wait whole while the others go on from their caches. A request is held if all of this is
true (`core.working_set` has the terms):

- its session's cache is lost: more than half of the prompt, which was computed before, is on no engine;
- that is much to compute (`working_set.is_heavy`): otherwise a wait is worse than computing again;
- it would fit no engine: W + own > cap on each;
- no engine is idle: an idle one computes it at nobody's cost;
- what it would push out is worth keeping (`WorkingSet.protects`);
- the budget is spent. Recomputing may cost SHARE of what is taken from the caches: each cached token that a session
  uses adds SHARE tokens to the budget, up to the size of one cache, and each lost session that goes on takes its lost
  tokens out. So the held ones take turns with the others, and where most hits are missed anyway nobody is held.

New sessions, short prompts and sessions that are cached never wait. Those held go on in the order in which they came as
soon as one of these is not true any more, but a smaller one that fits goes ahead of a larger one that does not. None is
held for longer than `longest_s`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

from router.core.working_set import WorkingSet, is_heavy
from router.types import EngineView

SHARE = 0.1
LOST = 0.5  # the part of a prompt
LOOKED_AT = 64  # of the held requests, at each time


class Release(StrEnum):
    """Why a held request went on."""

    FITS = "fits"
    IDLE = "idle_engine"
    CHEAP = "nothing_kept"  # what it pushes out is not worth keeping
    BUDGET = "turn"
    LONGEST = "longest"
    LEFT = "left"  # its client has left, or nobody waits for the answer any more


@dataclass(slots=True, eq=False)
class Held:
    """A request that waits."""

    session: str
    own_tokens: float
    lost_tokens: float
    views: Callable[[], Sequence[EngineView]]
    """The engines that may get it."""
    go: Callable[[], None]
    """Places it."""
    since_s: float
    until_s: float
    """`Holding.let_in` is to be called at that time."""


class HoldingStatus(NamedTuple):
    """Figures of the requests that have been held."""

    held: int
    """Now."""
    released: dict[str, int]
    """How many went on, by `Release`."""
    seconds: float
    """How long those had been held in all."""


class Holding:
    """The requests that are held. longest_s: for how long at most; 0: none is."""

    def __init__(self, working_set: WorkingSet, longest_s: float) -> None:
        self._working_set, self.longest_s = working_set, longest_s
        self._queue: dict[Held, None] = {}  # in the order in which they came
        self._budget_tokens = math.inf
        self._released = dict.fromkeys((each.value for each in Release), 0)
        self._seconds = 0.0

    def reused(self, tokens: float, capacity_tokens: float) -> None:
        """A session has used so many tokens of the cache of an engine of that size."""
        self._budget_tokens = min(self._budget_tokens + SHARE * tokens, capacity_tokens)

    def hold(
        self,
        session: str,
        prompt_tokens: float,
        output_tokens: float,
        own_tokens: float,
        lost: Callable[[], float],
        views: Callable[[], Sequence[EngineView]],
        go: Callable[[], None],
        now: float,
    ) -> Held | None:
        """Hold a request; None: it is to be placed at once.

        output_tokens: expected. lost: gives the tokens of the prompt that were computed before and are on no engine; as
        it has to look for them, it is asked last. go: is called once, when the request may be placed, unless it is
        withdrawn before.
        """
        if not self.longest_s or not is_heavy(prompt_tokens, output_tokens):
            return None
        if self._passes(session, own_tokens, views(), now):
            return None
        lost_tokens = lost()
        if lost_tokens <= LOST * prompt_tokens or not is_heavy(lost_tokens, output_tokens):
            return None
        if not self._queue and self._pays(lost_tokens):
            return None
        self._working_set.came(session, now)
        held = Held(session, own_tokens, lost_tokens, views, go, now, now + self.longest_s)
        self._queue[held] = None
        return held

    def withdraw(self, held: Held, now: float) -> None:
        """The request is not to be placed any more. One that has gone on changes nothing."""
        if held in self._queue:
            self._release(held, Release.LEFT, now)

    def let_in(self, now: float) -> None:
        """Let all go on that may. Call it when a request has ended, and at the `until_s` of each."""
        first = True
        for held in list(self._queue)[:LOOKED_AT]:
            if held not in self._queue:
                continue
            reason = self._passes(held.session, held.own_tokens, held.views(), now)
            if reason is None and now >= held.until_s:
                reason = Release.LONGEST
            if reason is None and first and self._pays(held.lost_tokens):
                reason = Release.BUDGET
            first = first and reason is not None
            if reason is not None:
                self._release(held, reason, now)
                held.go()

    def status(self) -> HoldingStatus:
        return HoldingStatus(len(self._queue), dict(self._released), self._seconds)

    def sessions(self) -> set[str]:
        """Those that have a request held."""
        return {held.session for held in self._queue}

    def _passes(self, session: str, own_tokens: float, views: Sequence[EngineView], now: float) -> Release | None:
        """Why the request need not wait for others; None: it must."""
        if not views or not all(view.in_flight for view in views):  # with no engine left it fails, but at once
            return Release.IDLE
        self._working_set.renew(views, now)
        if not self._working_set.protects:
            return Release.CHEAP
        if not all(self._working_set.excess(view, session, own_tokens) for view in views):
            return Release.FITS
        return None

    def _pays(self, tokens: float) -> bool:
        """Take the tokens out of the budget, if there is anything in it."""
        if self._budget_tokens <= 0:
            return False
        self._budget_tokens -= tokens
        return True

    def _release(self, held: Held, reason: Release, now: float) -> None:
        del self._queue[held]
        self._released[reason.value] += 1
        self._seconds += now - held.since_s
