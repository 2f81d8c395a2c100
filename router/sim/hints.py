"""What an eviction order is told of sessions in a simulation, as a gateway would tell it.

    off        nothing: requests name no session
    alone      requests name their session, and the order learns from that by itself
    on         besides, when an answer has ended, the gateway says when it expects the session's next request
    shuffled   the same, but it says what it expected after another answer, one of the last 200 by chance: hints that
               mean nothing, which must do no harm

The expectations are those of the learner that the gateway uses (`learners.return_times`).
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Hashable
from typing import Protocol

from router.learners.return_times import ReturnTimes
from router.types import Stop

OFF, ALONE, ON, SHUFFLED = "off", "alone", "on", "shuffled"
HINTS = (OFF, ALONE, ON, SHUFFLED)
SHUFFLED_AMONG = 200


class Hinted(Protocol):
    """What is told: an eviction order."""

    def expect(self, session: Hashable, seconds: float | None) -> None: ...


class Hints:
    """The gateway's part of one run; `mode` is one of HINTS. `seed` fixes what is shuffled."""

    def __init__(self, mode: str, seed: int) -> None:
        self.names_sessions = mode != OFF
        self._speaks, self._shuffles = mode in (ON, SHUFFLED), mode == SHUFFLED
        self._learner = ReturnTimes()
        self._random = random.Random(seed)
        self._recent: deque[float] = deque(maxlen=SHUFFLED_AMONG)

    def arrived(self, session: str | None, now_s: float) -> None:
        """A request of the session came."""
        if self._speaks and session is not None:
            self._learner.arrived(session, now_s)

    def answered(self, session: str | None, stop: Stop | None, now_s: float, tool: str | None, order: Hinted) -> None:
        """An answer of the session ended; `order` held its blocks, and is told what to expect."""
        if not self._speaks or session is None:
            return
        seconds = self._learner.answered(session, stop or Stop.UNKNOWN, now_s, tool).seconds
        if seconds is None:
            return
        if self._shuffles:
            self._recent.append(seconds)
            seconds = self._random.choice(self._recent)
        order.expect(session, seconds)
