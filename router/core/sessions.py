"""The sessions: who comes back, where its conversation is cached, and when it is expected next.

A session is one conversation with a model, which grows from request to request. Clients name theirs in a header or in
the body, or name nothing; several conversations may share a name, as an agent and its sub-agents do. So a session is
known by its name and by its chain of blocks: a request belongs to the session of its name whose last prompt it extends
or repeats. Without a name that is the nameless session with the longest such prompt. Anything else begins a session; if
there are others of its name, the first of them is its parent, unless the client names another one.

Prompts without a single full block cannot be told apart by their blocks: those of one name are one session, and those
without a name are new ones each time.

When an answer ends, the time of the next request is predicted (`learners.return_times`), and when that request comes,
the prediction is judged and the time is learned. A gap is learned only if the session had nothing else running.

Memory is bounded: at most `most` sessions, of which the one that has been idle for longest is forgotten first. A
session is also forgotten when its client says that it ends, and when it has been idle for FORGET_S. Nothing here holds
text of a conversation.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from router.core.working_set import WorkingSet
from router.learners.return_times import ReturnTimes
from router.types import BlockKey, Decision, Ending, EngineId, Outcome, ParsedRequest, Stop

LEAST_BLOCKS = 16
"""A session that has fewer blocks than this in the prefix index, in the mean, is not worth knowing: so the size of the
index says how many sessions there may be."""
MOST_OF_NAME = 64  # sessions of one name
FORGET_S = 6 * 3600.0
SWEEP = 64  # so many arrivals lie between two looks for sessions that have been idle for too long
ERROR_WEIGHT = 0.05  # of the newest error in the running mean


@dataclass(slots=True, eq=False)
class Session:
    """One conversation. Times are seconds on the clock of the decisions."""

    id: str
    """How engines, operators and this router call it."""
    name: str | None
    """The client's; None: it gave none."""
    parent: str | None
    """The id of the session that it works for."""
    seen_s: float
    """When its last request came, or its last answer ended."""
    requests: int = 0
    running: int = 0
    """Requests that have no end yet."""
    engine: EngineId | None = None
    """Where its last request went."""
    context_tokens: float = 0.0
    """The length of its conversation so far, as far as it is cached there."""
    shared_tokens: float = 0.0
    """What others had computed of its first prompt."""
    ended_s: float | None = None
    """When its last answer ended; None while it has none."""
    stop: Stop = Stop.UNKNOWN
    """Why that ended."""
    tool: str | None = None
    return_s: float | None = None
    """How long it is expected to stay away after that."""
    error: float | None = None
    """The running mean of |ln(actual / predicted)| of its gaps."""
    tip: BlockKey | None = None
    """The last full block of its last prompt; None: it had none."""
    tip_place: int = 0
    """The number of full blocks of that prompt."""

    def own_tokens(self, tokens: float, longest_tokens: float = 0.0) -> float:
        """What it would have to compute of so many tokens if its own cache were lost and that of all others were not.

        longest_tokens: what any engine holds of its first prompt, while that is not placed.
        """
        return max(0.0, tokens - (longest_tokens if self.tip is None else self.shared_tokens))

    def extended_by(self, keys: tuple[BlockKey, ...]) -> bool:
        """Whether a prompt of these blocks goes on with the conversation, or repeats its last prompt."""
        place = self.tip_place
        return not place or (place <= len(keys) and keys[place - 1] == self.tip)


class SessionsStatus(NamedTuple):
    """Figures of all sessions."""

    known: int
    running: int
    """Those with a request that has no end yet."""
    forgotten: int
    """How many have been forgotten so far to make room."""
    error: float | None
    """The running mean of |ln(actual / predicted)| of all gaps; None: there was none."""


class Sessions:
    """All sessions of one router, each of up to about 1.6 KB. returns: predicts when they come back. working_set: is
    told what they have cached. prefix: begins all ids, and should be that of no other router before the same engines.
    most: so many are kept, at least 1."""

    def __init__(self, returns: ReturnTimes, working_set: WorkingSet, prefix: str, most: int) -> None:
        self._returns, self._working_set, self._prefix, self._most = returns, working_set, prefix, most
        self._sessions: dict[str, Session] = {}
        """By id, the one that has been idle for longest first."""
        self._named: dict[str, list[Session]] = {}
        self._tips: dict[BlockKey, Session] = {}
        """Nameless sessions by their tips."""
        self._open: dict[int, Session] = {}
        """By booking."""
        self._next = self._running = self._forgotten = 0
        self._error: float | None = None

    def __len__(self) -> int:
        return len(self._sessions)

    def __iter__(self) -> Iterator[Session]:
        """All sessions, the one that was seen last first."""
        return reversed(list(self._sessions.values()))

    def get(self, session: str) -> Session | None:
        """The session of that id; None: it is not known."""
        return self._sessions.get(session)

    # --- a request's life ---------------------------------------------------------------------------------------

    def find(self, request: ParsedRequest) -> Session | None:
        """The session that the request goes on with; None: it begins one, or is none (it generates nothing)."""
        keys = request.prompt.keys
        if request.session is not None:
            candidates = [each for each in self._named.get(request.session, ()) if each.extended_by(keys)]
            return max(candidates, key=lambda each: each.tip_place, default=None)
        tips = self._tips
        return next((tips[key] for key in reversed(keys) if key in tips), None) if tips else None

    def arrive(self, request: ParsedRequest, now: float, *, again: bool) -> str | None:
        """The id of the session of a request that is to be placed, which may be a new one; None: it has none.

        again: it has been placed before, and its engine failed.
        """
        if not request.generates or request.choices != 1:
            return None
        session = self.find(request) or self._begin(request, now)
        if not again:
            session.requests += 1
            if not session.running and (gap_s := self._returns.arrived(session.id, now)) is not None:
                self._judge(session, gap_s)
        return session.id

    def dispatched(self, decision: Decision) -> bool:
        """A request has been placed. Returns whether its session had an earlier one."""
        session = None if decision.conversation is None else self.get(decision.conversation)
        if session is None:
            return False
        request, now, known = decision.request, decision.dispatched_s, session.tip is not None
        self._running += not session.running
        session.running += 1
        if not known:
            session.shared_tokens = decision.longest_tokens
        new_tokens = decision.prompt_tokens - max(session.context_tokens, decision.longest_tokens)
        session.engine, session.context_tokens = decision.engine, decision.prompt_tokens
        own_tokens = session.own_tokens(decision.prompt_tokens, decision.longest_tokens)
        self._working_set.runs(session.id, decision.engine, own_tokens, max(0.0, new_tokens), now)
        self._open[decision.booking] = session
        self._see(session, now)
        self._move_tip(session, request.prompt.keys)
        return known

    def completed(self, decision: Decision, outcome: Outcome) -> Session | None:
        """A request has ended. Returns its session if that has just become idle."""
        session = self._open.pop(decision.booking, None)
        if session is None:
            return None
        session.running -= 1
        self._running -= not session.running
        if session.id not in self._sessions:
            return None
        if outcome.ending is Ending.OK:
            prompt_tokens = outcome.prompt_tokens or decision.prompt_tokens
            session.context_tokens = prompt_tokens + (outcome.output_tokens or 0)
            self._working_set.computes(outcome.output_tokens or 0, outcome.done_s)
            session.stop, session.tool = outcome.stop, outcome.tool
        else:
            session.stop, session.tool = Stop.UNKNOWN, None
        if decision.request.final:
            self._forget(session)
            return None
        self._see(session, outcome.done_s)
        if session.running:
            return None
        session.ended_s = outcome.done_s
        own_tokens = session.own_tokens(session.context_tokens)
        self._working_set.idles(session.id, session.stop, own_tokens, outcome.done_s)
        expected = self._returns.answered(session.id, session.stop, outcome.done_s, session.tool)
        session.return_s = expected.seconds
        return session

    def _begin(self, request: ParsedRequest, now: float) -> Session:
        siblings = self._named.get(request.session, []) if request.session is not None else []
        parents = self._named.get(request.parent, []) if request.parent is not None else siblings
        session = Session(f"{self._prefix}{self._next}", request.session, parents[0].id if parents else None, now)
        self._next += 1
        self._sessions[session.id] = session
        if request.session is not None:
            self._named.setdefault(request.session, siblings).append(session)
            if len(siblings) > MOST_OF_NAME:
                self._forget(min(siblings[:-1], key=lambda each: each.seen_s))
        if len(self._sessions) > self._most:
            self._forgotten += 1
            self._forget(next(iter(self._sessions.values())))
        elif not self._next % SWEEP:
            self._sweep(now)
        return session

    def _judge(self, session: Session, gap_s: float) -> None:
        """The session has come back after so long."""
        if session.return_s:
            error = abs(math.log(gap_s / session.return_s))
            session.error = error if session.error is None else session.error + 0.25 * (error - session.error)
            self._error = error if self._error is None else self._error + ERROR_WEIGHT * (error - self._error)

    # --- bookkeeping --------------------------------------------------------------------------------------------

    def _see(self, session: Session, now: float) -> None:
        session.seen_s = now
        self._sessions[session.id] = self._sessions.pop(session.id)

    def _move_tip(self, session: Session, keys: tuple[BlockKey, ...]) -> None:
        if not keys:
            return
        if session.name is None:
            if session.tip is not None and self._tips.get(session.tip) is session:
                del self._tips[session.tip]
            self._tips[keys[-1]] = session
        session.tip, session.tip_place = keys[-1], len(keys)

    def _sweep(self, now: float) -> None:
        while self._sessions:
            oldest = next(iter(self._sessions.values()))
            if now - oldest.seen_s < FORGET_S:
                break
            self._forget(oldest)

    def _forget(self, session: Session) -> None:
        del self._sessions[session.id]
        self._returns.forget(session.id)
        self._working_set.forget(session.id)
        if session.name is not None:
            siblings = self._named[session.name]
            siblings.remove(session)
            if not siblings:
                del self._named[session.name]
        elif session.tip is not None and self._tips.get(session.tip) is session:
            del self._tips[session.tip]

    def engine_gone(self, engine: EngineId) -> None:
        """What the engine had cached is lost."""
        self._working_set.engine_gone(engine)
        for session in self._sessions.values():
            if session.engine == engine:
                session.engine, session.context_tokens = None, 0.0

    def status(self) -> SessionsStatus:
        return SessionsStatus(len(self._sessions), self._running, self._forgotten, self._error)
