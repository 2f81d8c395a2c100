"""The clients of a run: a session in progress, and one of its requests that is in flight."""

from __future__ import annotations

from dataclasses import dataclass

from router.core.holding import Held
from router.core.retries import Retries
from router.sim.fleet.dialog import Dialog, PlannedRequest, Turn
from router.sim.fleet.engine import Engine
from router.sim.fleet.job import Job
from router.sim.fleet.traffic import Session
from router.types import Decision


@dataclass(slots=True)
class ActiveSession:
    """A client's session that has begun: what it is going to ask, and how far it is."""

    plan: Session
    dialog: Dialog
    first_number: int
    """The number of its first request; its later requests have the numbers behind it."""
    turns_begun: int = 0


@dataclass(slots=True, eq=False)
class ActiveRequest:
    """A client's request from its arrival to its end, over all the engines that it is tried on."""

    session: ActiveSession
    planned: PlannedRequest
    number: int
    arrival_s: float
    abandon_after_s: float | None
    """The client leaves this long after the arrival if it has no answer by then; None: it stays."""
    retries: Retries
    """Its tries so far, and whether there may be another one."""
    held: Held | None = None
    """It is held before it is placed."""
    decision: Decision | None = None
    """The decision of the latest try."""
    placement: tuple[Engine, Job] | None = None
    """The engine that works on it and its job there; None before it is submitted and once it is over."""

    @property
    def turn(self) -> Turn:
        """What the client asked."""
        return self.session.plan.turns[self.number - self.session.first_number]

    def output_tokens(self, engine: Engine) -> int:
        """Return how many tokens the engine would generate.

        A recorded request that was abandoned would have had a longer answer than its client saw. Nobody knows how much
        longer, so it is taken to be as long as max_tokens and the engine's cache allow.
        """
        known, request = len(self.planned.reply), self.planned.request
        if self.abandon_after_s is None:
            return known
        room = engine.most_tokens - request.prompt.units
        return max(known, room if request.max_tokens is None else min(room, request.max_tokens))


def request_of(job: Job) -> ActiveRequest:
    """Return the request that a job belongs to."""
    assert isinstance(job.tag, ActiveRequest), "every job belongs to a request"
    return job.tag
