"""In how many seconds a session's next request comes, learned from the gaps of all sessions.

A gap g is the time from the end of an answer to the next request of its session. Its logarithm depends on the session
s, on the kind q of the ending (tool call, end of turn, unknown) and on the tool t that was called, where it is known.
The prediction is a mean of logarithms, and each level is shrunk towards the next wider one:

    log r = m(s, q, t),      m_level = (n_level mean_level + W m_wider) / (n_level + W),      W = 2
    levels: (session, kind, tool)  <  (tool, kind)  <  kind  <  all,          or (session, kind)  <  kind  <  all

A session's mean is that of its last 8 gaps of the kind (and tool); those of a tool, of a kind and of all are of the
last 200. So n is at most 8 and 200. Without any gap r is unknown.

The chance that a session never returns is learned by kind: (lost + 1) / (lost + returned + 2), where a session counts
as lost, and is forgotten, once LOST_S have passed without a request. Both counts fade by .995 with each new one.

Memory: SESSIONS sessions, those answered last, with at most ENDINGS endings each, and TOOLS tools. No text is kept.
Everything is O(1), and time comes in as an argument.
"""

from __future__ import annotations

import math
from collections import OrderedDict, deque
from typing import NamedTuple, TypeVar

from router.types import Stop

WEIGHT = 2.0  # gaps that the mean of the next wider level counts as
SESSION_GAPS, KIND_GAPS = 8, 200  # the last gaps that a mean is of
SESSIONS = 8192
ENDINGS = 16  # kinds and tools of one session
TOOLS = 1024
SHORTEST_GAP_S = 0.1
LOST_S = 3600.0
FADE = 0.995


class Return(NamedTuple):
    """What is expected of a session after its answer."""

    seconds: float | None
    """The time to its next request, if there is one; None: nothing is known yet."""
    never: float
    """The chance that there is none."""


class RecentMean:
    """The mean of the last `most` values, shrunk towards a wider mean."""

    __slots__ = ("_sum", "_values")

    def __init__(self, most: int) -> None:
        self._values: deque[float] = deque(maxlen=most)
        self._sum = 0.0

    def add(self, value: float) -> None:
        values = self._values
        if len(values) == values.maxlen:
            self._sum -= values[0]
        values.append(value)
        self._sum += value

    def shrunk(self, wider: float | None) -> float | None:
        """Return the mean, in which `wider` counts as WEIGHT values; None if there is neither."""
        if wider is None:
            return self._sum / len(self._values) if self._values else None
        return (self._sum + WEIGHT * wider) / (len(self._values) + WEIGHT)


class _Answer(NamedTuple):
    """The last answer to a session whose next request has not come yet."""

    done_s: float
    kind: Stop
    tool: str | None


_Gaps = OrderedDict[tuple[Stop, str | None], RecentMean]


class ReturnTimes:
    """Call `answered` when an answer ends and `arrived` when a request comes. Sessions and tools are names, which the
    caller keeps short."""

    def __init__(self) -> None:
        self._sessions: OrderedDict[str, _Gaps] = OrderedDict()  # the one answered last is the last
        self._answers: OrderedDict[str, _Answer] = OrderedDict()  # in the order of time; a part of the sessions
        self._tools: OrderedDict[tuple[Stop, str], RecentMean] = OrderedDict()
        self._kinds = {kind: RecentMean(KIND_GAPS) for kind in Stop}
        self._all = RecentMean(KIND_GAPS)
        self._returned = dict.fromkeys(Stop, 0.0)
        self._lost = dict.fromkeys(Stop, 0.0)

    def __len__(self) -> int:
        """How many sessions are known."""
        return len(self._sessions)

    def arrived(self, session: str, now_s: float) -> float | None:
        """A request of the session comes. Return the gap since its last answer in seconds, None if there is none.

        A further request before the answer to the first one, as of parallel calls, teaches nothing.
        """
        answer = self._answers.pop(session, None)
        if answer is None:
            return None
        gap_s = max(SHORTEST_GAP_S, now_s - answer.done_s)
        value, kind, tool = math.log(gap_s), answer.kind, answer.tool
        _opened(self._sessions[session], (kind, tool), ENDINGS, SESSION_GAPS).add(value)
        if tool is not None:
            _opened(self._tools, (kind, tool), TOOLS, KIND_GAPS).add(value)
        self._kinds[kind].add(value)
        self._all.add(value)
        self._count(self._returned, kind)
        return gap_s

    def answered(self, session: str, kind: Stop, now_s: float, tool: str | None = None) -> Return:
        """An answer to the session ended in this way. Return what is expected of the session now."""
        self._count_lost(now_s)
        if session not in self._sessions:
            self._sessions[session] = OrderedDict()
            if len(self._sessions) > SESSIONS:
                dropped, _ = self._sessions.popitem(last=False)
                self._answers.pop(dropped, None)
        self._sessions.move_to_end(session)
        self._answers[session] = _Answer(now_s, kind, tool)
        self._answers.move_to_end(session)
        return self.predict(session, kind, tool)

    def predict(self, session: str, kind: Stop, tool: str | None = None) -> Return:
        """Return what would be expected of the session after such an ending. Nothing changes."""
        value = self._kinds[kind].shrunk(self._all.shrunk(None))
        if tool is not None and (of_tool := self._tools.get((kind, tool))):
            value = of_tool.shrunk(value)
        gaps = self._sessions.get(session)
        if gaps is not None and (own := gaps.get((kind, tool))):
            value = own.shrunk(value)
        lost, returned = self._lost[kind], self._returned[kind]
        return Return(None if value is None else math.exp(value), (lost + 1) / (lost + returned + 2))

    def forget(self, session: str) -> None:
        """The session is over, as its client says: nobody waits for it, and it teaches nothing."""
        self._sessions.pop(session, None)
        self._answers.pop(session, None)

    def _count_lost(self, now_s: float) -> None:
        while self._answers:
            session, answer = next(iter(self._answers.items()))
            if now_s - answer.done_s < LOST_S:
                return
            self._count(self._lost, answer.kind)
            self.forget(session)

    def _count(self, counts: dict[Stop, float], kind: Stop) -> None:
        self._returned[kind] *= FADE
        self._lost[kind] *= FADE
        counts[kind] += 1


K = TypeVar("K")


def _opened(means: OrderedDict[K, RecentMean], key: K, most: int, values: int) -> RecentMean:
    """Return the mean of a key that has a value now. A new one may drop the one that was used least recently."""
    mean = means.get(key)
    if mean is None:
        mean = means[key] = RecentMean(values)
        if len(means) > most:
            means.popitem(last=False)
    means.move_to_end(key)
    return mean
