"""The simulation of one run: clients, the gateway's router and engines, on a clock that jumps from event to event.

The router is the gateway's own object. It is told only what a gateway sees: dispatches, the first tokens of streamed
requests, answers with their usage, broken and refused connections, and what engines report of themselves.
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
from router.prefix.blocks import extend
from router.sim.fleet.client import ActiveRequest, ActiveSession, request_of
from router.sim.fleet.dialog import Dialog
from router.sim.fleet.engine import NEVER, Engine
from router.sim.fleet.job import Job
from router.sim.fleet.scenario import Run, build_engine, describe_engine
from router.sim.fleet.traffic import Session
from router.sim.hints import Hints
from router.sim.trace import REPORT_EVERY, ignore
from router.types import Decision, Ending, EngineId, Outcome

GOLDEN = 0.618033988749895  # The fractional parts of its multiples are spread evenly over 0 to 1.


class ServedRequest(NamedTuple):
    """One request that was answered. Times are seconds from the start of the run."""

    number: int
    """Requests are numbered from 0 in the order of their sessions, and of the turns within a session."""
    arrival_s: float
    first_s: float
    """When the engine had the first token, whether the client could see it or not."""
    done_s: float
    prompt_tokens: int
    cached_tokens: int
    output_tokens: int
    engine: int
    """The index of the engine that answered."""


@dataclass(frozen=True, slots=True)
class RunResult:
    """All that came of a run: the requests that were answered, in the order of their ends, and counts."""

    served: list[ServedRequest]
    requests: int
    last_arrival_s: float
    """When the last session began."""
    failed: int
    """Requests that got no answer."""
    preemptions: int
    busy_s: list[float]
    """How long each engine worked."""
    abandoned: int = 0
    """Requests whose clients left before the answer was whole."""


OnDecision = Callable[[Decision], None]


def simulate(
    run: Run, report: Callable[[float], None] = ignore, on_decision: OnDecision = lambda _decision: None
) -> RunResult:
    """Play one run from its first arrival to its last answer.

    `report` is called now and then with the part of the run that is done, 0 to 1, and `on_decision` with every decision
    of the router. Raises TraceError if the run replays a trace that cannot be read.
    """
    return Simulation(run, report, on_decision).run()


class Simulation:
    """The state of one run, which is played once.

    An event is a call at a time. Events are played in the order of their times, and those of one time in the order in
    which they were scheduled.
    """

    def __init__(self, run: Run, report: Callable[[float], None], on_decision: OnDecision) -> None:
        self._run, self._report, self._on_decision = run, report, on_decision
        self._config = configure(policy=run.policy, **run.options)
        self._router = Router(self._config.routing, self._config.policies, rng=random.Random(run.seed))
        self._now = 0.0
        self._events: list[tuple[float, int, Callable[..., None], tuple[object, ...]]] = []
        self._serial = count()
        self._engines: dict[EngineId, Engine] = {}  # those that are alive
        self._ids = [EngineId(f"engine-{index}") for index in range(run.fleet.engines)]
        self._index = {engine: index for index, engine in enumerate(self._ids)}
        self._busy_s = [0.0] * run.fleet.engines
        self._sessions: Iterator[Session] = run.traffic.open(run.seed, run.fleet.block_tokens)
        self._requests = self._failed = self._abandoned = self._preemptions = 0
        self._last_arrival_s = 0.0
        self._served: list[ServedRequest] = []
        self._hints = Hints(run.hints, run.seed)

    def run(self) -> RunResult:
        self._schedule_fleet()
        self._schedule_session()
        while self._events:
            self._now, _, action, what = heappop(self._events)
            action(*what)
        for engine in list(self._engines):
            self._retire(engine)
        assert self._router.in_flight == 0
        counts = self._requests, self._last_arrival_s, self._failed, self._preemptions
        return RunResult(self._served, *counts, self._busy_s, self._abandoned)

    def _schedule(self, time_s: float, action: Callable[..., None], *what: object) -> None:
        heappush(self._events, (time_s, next(self._serial), action, what))

    # --- engines --------------------------------------------------------------------------------------------------

    def _schedule_fleet(self) -> None:
        fleet = self._run.fleet
        late = {index for index, join_s in fleet.join if not any(i == index and s < join_s for i, s in fleet.fail)}
        for index in range(fleet.engines):
            if index not in late:
                self._start_engine(index)
        for index, join_s in fleet.join:
            self._schedule(join_s, self._start_engine, index)
        for index, fail_s in fleet.fail:
            self._schedule(fail_s, self._fail_engine, index)
        for slowdown in fleet.degrade:
            self._schedule(slowdown.start_s, self._slow_engine, slowdown.engine, slowdown.factor)
            self._schedule(slowdown.end_s, self._slow_engine, slowdown.engine, 1 / slowdown.factor)

    def _start_engine(self, index: int) -> None:
        name, router = self._ids[index], self._router
        if name in self._engines:
            return
        engine = self._engines[name] = build_engine(self._run, index)
        router.add_engine(name)
        router.set_info(name, describe_engine(self._run, index, engine))
        router.set_health(name, True)

    def _fail_engine(self, index: int) -> None:
        """The engine's process dies, and its connections break. From then on it refuses new ones; the router learns of
        its death by the first refusal, or by the health checks that fail."""
        name = self._ids[index]
        if name not in self._engines:
            return
        lost = self._engines[name].kill()
        self._retire(name)
        checks_s = self._config.engines.health_check_interval_secs * self._config.engines.health_failure_threshold
        self._schedule(self._now + checks_s, self._find_failure, name)
        for job in lost:
            active = request_of(job)
            if active.placement is not None:  # else its client has just left
                self._lose(active, job.first_s)

    def _find_failure(self, name: EngineId) -> None:
        if name not in self._engines:
            self._router.set_health(name, False)

    def _slow_engine(self, index: int, factor: float) -> None:
        engine = self._engines.get(self._ids[index])
        if engine is not None:
            engine.slow_down(engine.slowness * factor, self._now)
            self._schedule_steps(engine)

    def _retire(self, name: EngineId) -> None:
        engine = self._engines.pop(name)
        self._busy_s[self._index[name]] += engine.busy_s
        self._preemptions += engine.preemptions

    def _schedule_steps(self, engine: Engine) -> None:
        if engine.next_s < NEVER:
            self._schedule(engine.next_s, self._advance, engine)

    def _advance(self, engine: Engine) -> None:
        if engine.next_s != self._now:
            return  # The steps have been cut short since; another event is set for their new end.
        first, done = engine.advance()
        self._schedule_steps(engine)
        for job in first:
            active = request_of(job)
            assert active.decision is not None
            if active.planned.request.stream:
                self._router.first_token(active.decision, self._now)
        for job in done:
            self._finish(job)

    # --- clients --------------------------------------------------------------------------------------------------

    def _schedule_session(self) -> None:
        plan = next(self._sessions, None)
        if plan is None:
            return
        self._schedule(plan.arrival_s, self._begin_session, self._open(plan))

    def _open(self, plan: Session) -> ActiveSession:
        first_number, self._requests = self._requests, self._requests + len(plan.turns)
        return ActiveSession(plan, Dialog(plan.prefix, plan.first_token_id), first_number)

    def _begin_session(self, session: ActiveSession) -> None:
        self._last_arrival_s = self._now
        self._schedule_session()
        self._send(session)

    def _go_on(self, session: ActiveSession, *, answered: bool = False) -> None:
        """A request of the session has ended. Schedule those that follow from it."""
        plan = session.plan
        if session.turns_begun == len(plan.turns) and plan.follow is not None:
            for following in plan.follow(self._now, answered):
                self._schedule(following.arrival_s, self._send, self._open(following))

    def _send(self, session: ActiveSession) -> None:
        """A client sends its next request."""
        number, plan = session.first_number + session.turns_begun, session.plan
        turn = plan.turns[session.turns_begun]
        stream = turn.stream
        if stream is None:
            stream = number * GOLDEN % 1.0 >= self._run.fleet.unstreamed  # so they are the same ones under any policy
        bounds_s = self._run.fleet.slo_ttft_s, self._run.fleet.slo_tpot_s
        planned = session.dialog.next_request(
            turn, str(number), plan.session_id, stream=stream, sets_max_tokens=plan.sets_max_tokens, bounds_s=bounds_s
        )
        session.turns_begun += 1
        self._hints.arrived(plan.session_id, self._now)
        retries = Retries(self._config.reliability.retry_max_retries)
        active = ActiveRequest(session, planned, number, self._now, turn.abandon_after_s, retries)
        if turn.abandon_after_s is not None:
            self._schedule(self._now + turn.abandon_after_s, self._abandon, active)
        self._admit(active)

    def _admit(self, active: ActiveRequest) -> None:
        """Place the request, or hold it first."""
        active.held = self._router.hold(active.planned.request, self._now, lambda: self._dispatch(active))
        if active.held is None:
            self._dispatch(active)
        else:
            self._schedule(active.held.until_s, self._let_in)

    def _let_in(self) -> None:
        self._router.holding.let_in(self._now)

    def _dispatch(self, active: ActiveRequest) -> None:
        """Try one engine after another, as the gateway does, until one takes the request."""
        request, router, retries = active.planned.request, self._router, active.retries
        held_s, active.held = 0.0 if active.held is None else self._now - active.held.since_s, None
        while True:
            try:
                decision = router.route(request, self._now, exclude=retries.tried, held_s=held_s)
            except NoEngine:
                break
            self._on_decision(decision)
            active.decision = decision
            retries.began(decision.engine)
            engine = self._engines.get(decision.engine)
            if engine is not None:
                self._submit(active, decision, engine)
                return
            router.complete(decision, Outcome(EngineUnreachable.ending, self._now))
            router.set_health(decision.engine, False)
            if not retries.failed(RetryReason.CONNECT, answer_begun=False):
                break
        self._failed += 1
        self._go_on(active.session)

    def _submit(self, active: ActiveRequest, decision: Decision, engine: Engine) -> None:
        planned, plan = active.planned, active.session.plan
        job = Job(planned.keys, planned.request.prompt.units, active.output_tokens(engine), active)
        job.session = plan.session_id if self._hints.names_sessions else None
        job.arrival_s, job.parent, job.stop = active.arrival_s, plan.parent, active.turn.stop
        if not engine.fits(job):
            self._router.complete(decision, Outcome(Ending.REJECTED, self._now))
            self._failed += 1
            self._go_on(active.session)
            return
        active.placement = engine, job
        before = engine.next_s
        engine.submit(job, self._now)
        if engine.next_s != before:
            self._schedule_steps(engine)

    def _abandon(self, active: ActiveRequest) -> None:
        """The client leaves. Nothing happens if its request is over by then, answered or failed."""
        if active.held is not None:
            self._router.holding.withdraw(active.held, self._now)
            active.held = None
            self._abandoned += 1
            self._go_on(active.session)
        if active.placement is None:
            return
        assert active.decision is not None
        (engine, job), active.placement = active.placement, None
        engine.abort(job, self._now)
        self._schedule_steps(engine)
        seen_s = job.first_s if active.planned.request.stream else None
        self._router.complete(active.decision, Outcome(Ending.CANCELLED, self._now, seen_s))
        self._abandoned += 1
        self._go_on(active.session)

    def _lose(self, active: ActiveRequest, first_s: float | None) -> None:
        """The connection broke. Another engine may be tried, unless the client has seen a part of the answer."""
        assert active.decision is not None
        active.placement = None
        seen_s = first_s if active.planned.request.stream else None
        self._router.complete(active.decision, Outcome(EngineLost.ending, self._now, seen_s))
        if active.retries.failed(RetryReason.RESET, answer_begun=seen_s is not None):
            self._dispatch(active)
        else:
            self._failed += 1
            self._go_on(active.session)

    def _finish(self, job: Job) -> None:
        """The answer is whole. The router learns of it, and the client thinks about its next turn."""
        active = request_of(job)
        assert active.decision is not None
        assert job.first_s is not None
        assert job.cached_tokens is not None
        active.placement = None
        lengths = job.prompt_tokens, job.cached_tokens, job.output_tokens
        seen_s = job.first_s if active.planned.request.stream else None
        reply_keys = extend(active.decision.request.prompt, active.planned.reply)
        self._router.complete(active.decision, Outcome(Ending.OK, self._now, seen_s, *lengths, reply_keys))
        session, name = active.session, active.decision.engine
        order = self._engines[name].pool.order
        self._hints.answered(session.plan.session_id, job.stop, self._now, active.turn.tool, order)
        served = ServedRequest(active.number, active.arrival_s, job.first_s, self._now, *lengths, self._index[name])
        self._served.append(served)
        if len(self._served) % REPORT_EVERY == 0:
            self._report(min(1.0, len(self._served) / self._run.traffic.requests))
        self._go_on(session, answered=True)
        if session.turns_begun < len(session.plan.turns):
            pause_s = session.plan.turns[session.turns_begun].pause_s
            self._schedule(self._now + pause_s, self._send, session)
