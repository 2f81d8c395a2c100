"""Plays a run: clients, the gateway's router and engines on a clock that jumps from event to event.

The router is the gateway's own object, and is told what a gateway sees: its dispatches, first tokens of streamed
requests, answers with their usage, broken and refused connections, and what engines say of themselves.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from heapq import heappop, heappush
from itertools import count
from typing import NamedTuple

from router.config import configure
from router.core.retries import Retries
from router.core.router import Router
from router.errors import EngineLost, EngineUnreachable, NoEngine, RetryReason
from router.sim.fleet.call import Call, Visit, call_of
from router.sim.fleet.dialog import Dialog
from router.sim.fleet.engine import NEVER, Engine
from router.sim.fleet.job import Job
from router.sim.fleet.scenario import Run, build_engine, describe_engine
from router.sim.fleet.traffic import Session
from router.sim.trace import REPORT_EVERY, ignore
from router.types import Decision, Ending, EngineId, Outcome

GOLDEN = 0.618033988749895  # its multiples are spread evenly over 0 to 1


class Served(NamedTuple):
    """One request that was answered, by its number in the order of the sessions. Times in seconds, lengths in tokens.

    first_s: when the engine had its first token, whether the client could see it or not.
    """

    number: int
    arrival_s: float
    first_s: float
    done_s: float
    prompt_tokens: int
    cached_tokens: int
    output_tokens: int
    engine: int


@dataclass(frozen=True, slots=True)
class Played:
    """All that came of a run.

    last_arrival_s: when the last session began; failed: requests without an answer; busy_s: of each engine; left: those
    whose clients did not wait for the answer.
    """

    served: list[Served]
    requests: int
    last_arrival_s: float
    failed: int
    preemptions: int
    busy_s: list[float]
    left: int = 0


Watcher = Callable[[Decision], None]


def play(run: Run, report: Callable[[float], None] = ignore, watcher: Watcher = lambda _decision: None) -> Played:
    """One run from its first arrival to its last answer. `watcher` sees every decision. Raises TraceError."""
    return Player(run, report, watcher).play()


class Player:
    """The state of one run. Events are calls, in the order of their times; at one time in the order they were set."""

    def __init__(self, run: Run, report: Callable[[float], None], watcher: Watcher) -> None:
        self._run, self._report, self._watcher = run, report, watcher
        self._config = configure(policy=run.policy, **run.options)
        self._router = Router(self._config.routing, self._config.policies, rng=random.Random(run.seed))
        self._now = 0.0
        self._events: list[tuple[float, int, Callable[..., None], tuple[object, ...]]] = []
        self._serial = count()
        self._engines: dict[EngineId, Engine] = {}  # those that live
        self._ids = [EngineId(f"engine-{index}") for index in range(run.fleet.engines)]
        self._index = {engine: index for index, engine in enumerate(self._ids)}
        self._busy_s = [0.0] * run.fleet.engines
        self._sessions: Iterator[Session] = run.traffic.open(run.seed, run.fleet.block_tokens)
        self._requests = self._failed = self._left = self._preemptions = 0
        self._last_arrival_s = 0.0
        self._served: list[Served] = []

    def play(self) -> Played:
        self._prepare()
        self._next_session()
        while self._events:
            self._now, _, action, what = heappop(self._events)
            action(*what)
        for engine in list(self._engines):
            self._count(engine)
        assert self._router.in_flight == 0
        counts = self._requests, self._last_arrival_s, self._failed, self._preemptions
        return Played(self._served, *counts, self._busy_s, self._left)

    def _at(self, time_s: float, action: Callable[..., None], *what: object) -> None:
        heappush(self._events, (time_s, next(self._serial), action, what))

    # --- engines --------------------------------------------------------------------------------------------------

    def _prepare(self) -> None:
        fleet = self._run.fleet
        late = {index for index, join_s in fleet.join if not any(i == index and s < join_s for i, s in fleet.fail)}
        for index in range(fleet.engines):
            if index not in late:
                self._start(index)
        for index, join_s in fleet.join:
            self._at(join_s, self._start, index)
        for index, fail_s in fleet.fail:
            self._at(fail_s, self._fail, index)
        for slowdown in fleet.degrade:
            self._at(slowdown.start_s, self._slow_down, slowdown.engine, slowdown.factor)
            self._at(slowdown.end_s, self._slow_down, slowdown.engine, 1 / slowdown.factor)

    def _start(self, index: int) -> None:
        name, router = self._ids[index], self._router
        if name in self._engines:
            return
        engine = self._engines[name] = build_engine(self._run, index)
        router.add_engine(name)
        router.set_info(name, describe_engine(self._run, index, engine))
        router.set_health(name, True)

    def _fail(self, index: int) -> None:
        """The engine's process dies: its connections break. New ones are refused, or checks find it out."""
        name = self._ids[index]
        if name not in self._engines:
            return
        lost = self._engines[name].kill()
        self._count(name)
        checks_s = self._config.engines.health_check_interval_secs * self._config.engines.health_failure_threshold
        self._at(self._now + checks_s, self._check, name)
        for job in lost:
            call = call_of(job)
            if call.place is not None:  # else its client has left just before
                self._lose(call, job.first_s)

    def _check(self, name: EngineId) -> None:
        if name not in self._engines:
            self._router.set_health(name, False)

    def _slow_down(self, index: int, factor: float) -> None:
        engine = self._engines.get(self._ids[index])
        if engine is not None:
            engine.slow_down(engine.slowness * factor, self._now)
            self._watch(engine)

    def _count(self, name: EngineId) -> None:
        engine = self._engines.pop(name)
        self._busy_s[self._index[name]] += engine.busy_s
        self._preemptions += engine.preemptions

    def _watch(self, engine: Engine) -> None:
        if engine.next_s < NEVER:
            self._at(engine.next_s, self._wake, engine)

    def _wake(self, engine: Engine) -> None:
        if engine.next_s != self._now:
            return  # its steps end at another time by now
        first, done = engine.advance()
        self._watch(engine)
        for job in first:
            call = call_of(job)
            assert call.decision is not None
            if call.asked.request.stream:
                self._router.first_token(call.decision, self._now)
        for job in done:
            self._finish(job)

    # --- clients --------------------------------------------------------------------------------------------------

    def _next_session(self) -> None:
        session = next(self._sessions, None)
        if session is None:
            return
        visit = Visit(session, Dialog(session.head, session.token), self._requests)
        self._requests += len(session.turns)
        self._at(session.arrival_s, self._arrive, visit)

    def _arrive(self, visit: Visit) -> None:
        self._last_arrival_s = self._now
        self._next_session()
        self._ask(visit)

    def _ask(self, visit: Visit) -> None:
        """A client sends its next request."""
        number, session = visit.number + visit.turn, visit.session
        turn = session.turns[visit.turn]
        stream = turn.stream
        if stream is None:
            stream = number * GOLDEN % 1.0 >= self._run.fleet.unstreamed  # the same ones under any policy
        bounds_s = self._run.fleet.slo_ttft_s, self._run.fleet.slo_tpot_s
        asked = visit.dialog.ask(turn, str(number), session.name, stream=stream, told=session.told, bounds_s=bounds_s)
        visit.turn += 1
        retries = Retries(self._config.reliability.retry_max_retries)
        call = Call(visit, asked, number, self._now, turn.left_s, retries)
        if turn.left_s is not None:
            self._at(self._now + turn.left_s, self._leave, call)
        self._dispatch(call)

    def _dispatch(self, call: Call) -> None:
        """Tries engines as the gateway does, until one takes the request."""
        request, router, retries = call.asked.request, self._router, call.retries
        while True:
            try:
                decision = router.route(request, self._now, exclude=retries.tried)
            except NoEngine:
                break
            self._watcher(decision)
            call.decision = decision
            retries.began(decision.engine)
            engine = self._engines.get(decision.engine)
            if engine is not None:
                self._submit(call, decision, engine)
                return
            router.complete(decision, Outcome(EngineUnreachable.ending, self._now))
            router.set_health(decision.engine, False)
            if not retries.failed(RetryReason.CONNECT, answer_begun=False):
                break
        self._failed += 1

    def _submit(self, call: Call, decision: Decision, engine: Engine) -> None:
        asked = call.asked
        job = Job(asked.keys, asked.request.prompt.units, call.tokens(engine), call)
        if not engine.fits(job):
            self._router.complete(decision, Outcome(Ending.REJECTED, self._now))
            self._failed += 1
            return
        call.place = engine, job
        before = engine.next_s
        engine.submit(job, self._now)
        if engine.next_s != before:
            self._watch(engine)

    def _leave(self, call: Call) -> None:
        """A client waits no longer. Nothing happens if it has its answer, or knows that there is none."""
        if call.place is None:
            return
        assert call.decision is not None
        (engine, job), call.place = call.place, None
        engine.abort(job, self._now)
        self._watch(engine)
        seen_s = job.first_s if call.asked.request.stream else None
        self._router.complete(call.decision, Outcome(Ending.CANCELLED, self._now, seen_s))
        self._left += 1

    def _lose(self, call: Call, first_s: float | None) -> None:
        """The connection broke. Another engine may be tried, unless the client has seen part of an answer."""
        assert call.decision is not None
        call.place = None
        seen_s = first_s if call.asked.request.stream else None
        self._router.complete(call.decision, Outcome(EngineLost.ending, self._now, seen_s))
        if call.retries.failed(RetryReason.RESET, answer_begun=seen_s is not None):
            self._dispatch(call)
        else:
            self._failed += 1

    def _finish(self, job: Job) -> None:
        call = call_of(job)
        assert call.decision is not None
        assert job.first_s is not None
        assert job.cached_tokens is not None
        call.place = None
        now, asked = self._now, call.asked
        outcome = Outcome(
            Ending.OK,
            now,
            job.first_s if asked.request.stream else None,
            job.prompt_tokens,
            job.cached_tokens,
            job.output_tokens,
            asked.reply,
        )
        self._router.complete(call.decision, outcome)
        self._served.append(
            Served(
                call.number,
                call.arrival_s,
                job.first_s,
                now,
                job.prompt_tokens,
                job.cached_tokens,
                job.output_tokens,
                self._index[call.decision.engine],
            )
        )
        if len(self._served) % REPORT_EVERY == 0:
            self._report(min(1.0, len(self._served) / self._run.traffic.requests))
        visit = call.visit
        if visit.turn < len(visit.session.turns):
            pause_s = visit.session.turns[visit.turn].pause_s
            self._at(now + pause_s, self._ask, visit)
