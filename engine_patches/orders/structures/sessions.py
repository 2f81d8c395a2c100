"""Sessions as an order knows them: who used blocks last, and when that session is expected to ask again.

A request of a session leaves its blocks behind with a `Use`, which they share. The use has a return class, the expected
time until the session's next request in steps:

    class 0  no session, or nothing known        class i  expected within EDGES_S[i - 1] seconds, 8: later or never

The class is only a feature: what it is worth is learned (`hazard`). As blocks share their use, news of a session move
its leaves, which are few, and not all of its blocks. News come too late for blocks that nobody has used for HORIZON
epochs: they keep the class that they have.

The expectation comes from outside (`expect`, a gateway's hint), or else from the session's own requests: with g the
time between two of them,

    log r = (n m + 2 m_all) / (n + 2),      m: mean of log g over the session's last n <= 8 gaps, m_all: the last 200

Memory: the SESSIONS sessions used last; of the others, blocks keep the class that they have.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections import OrderedDict, deque
from collections.abc import Hashable
from typing import Any

EDGES_S = (12.0, 20.0, 30.0, 45.0, 70.0, 120.0, 300.0)
RETURN_CLASSES = len(EDGES_S) + 2
UNKNOWN = 0
SESSIONS = 4096
SESSION_GAPS, ALL_GAPS = 8, 200
WEIGHT = 2.0  # gaps that the mean of all counts as
SHORTEST_GAP_S = 0.1


def return_class(seconds: float | None) -> int:
    """Return the class of an expected time to the next request; None: there will be none."""
    return RETURN_CLASSES - 1 if seconds is None else 1 + bisect_right(EDGES_S, seconds)


class Cohort:
    """All that was used last in one epoch with one return class. Lists have one entry for each kind of block, which is
    what else makes its class: `at_risk`, the number of keys at risk (`hazard`), and `buckets`, the free leaves.

    `first_class` is the first of the order's classes for the return class.
    """

    __slots__ = ("at_risk", "buckets", "epoch", "first_class")

    def __init__(self, first_class: int, epoch: int, at_risk: list[int]) -> None:
        self.first_class, self.epoch, self.at_risk = first_class, epoch, at_risk
        self.buckets: list[list[Any]] = [[] for _ in at_risk]


class Use:
    """The blocks that one request left behind, as far as nobody has used or evicted them since.

    It is in one cohort, whose attributes it has. `counts` are the number of its free keys by kind, and `leaves` are
    those of them that are leaves; None: nobody asks for them.
    """

    __slots__ = ("at_risk", "buckets", "counts", "epoch", "first_class", "leaves")

    def __init__(self, cohort: Cohort, leaves: dict[Any, None] | None) -> None:
        self.join(cohort)
        self.counts = [0] * len(cohort.at_risk)
        self.leaves = leaves

    def join(self, cohort: Cohort) -> None:
        self.first_class, self.epoch = cohort.first_class, cohort.epoch
        self.at_risk, self.buckets = cohort.at_risk, cohort.buckets


class Session:
    """One session: when its last request came, its last gaps, and what it left behind last."""

    __slots__ = ("arrival_s", "gaps", "told", "use")

    def __init__(self, arrival_s: float) -> None:
        self.arrival_s = arrival_s
        self.gaps: deque[float] = deque(maxlen=SESSION_GAPS)  # logarithms
        self.use: Use | None = None  # None while a request of it runs
        self.told = UNKNOWN  # the return class that was told while a request of it ran


class SessionTable:
    """Sessions by name. Time comes in with their requests."""

    def __init__(self) -> None:
        self._sessions: OrderedDict[Hashable, Session] = OrderedDict()
        self._gaps: deque[float] = deque(maxlen=ALL_GAPS)
        self._sum = 0.0

    def __len__(self) -> int:
        return len(self._sessions)

    def find(self, name: Hashable) -> Session | None:
        return self._sessions.get(name)

    def arrive(self, name: Hashable, arrival_s: float) -> Session:
        """A request of the session came at this time. Telling it again changes nothing."""
        session = self._sessions.get(name)
        if session is None:
            session = self._sessions[name] = Session(arrival_s)
            if len(self._sessions) > SESSIONS:
                self._sessions.popitem(last=False)
        elif session.arrival_s != arrival_s:
            self._sessions.move_to_end(name)
            gap = math.log(max(SHORTEST_GAP_S, arrival_s - session.arrival_s))
            session.arrival_s = arrival_s
            session.use = None
            session.gaps.append(gap)
            if len(self._gaps) == ALL_GAPS:
                self._sum -= self._gaps[0]
            self._gaps.append(gap)
            self._sum += gap
        return session

    def predict(self, session: Session) -> int:
        """Return the return class that the session's own requests suggest."""
        if not self._gaps:
            return UNKNOWN
        mean = self._sum / len(self._gaps)
        return return_class(math.exp((sum(session.gaps) + WEIGHT * mean) / (len(session.gaps) + WEIGHT)))
