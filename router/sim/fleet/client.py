"""Clients of a run: a session in progress, and one of its requests on its way."""

from __future__ import annotations

from dataclasses import dataclass, field

from router.sim.fleet.dialog import Dialog, PlannedRequest
from router.sim.fleet.engine import Engine
from router.sim.fleet.job import Job
from router.sim.fleet.traffic import Session
from router.types import Decision, EngineId


@dataclass(slots=True)
class ActiveSession:
    """A session in progress; `first_number`: of its first request."""

    plan: Session
    dialog: Dialog
    first_number: int
    turns_begun: int = 0


@dataclass(slots=True, eq=False)
class ActiveRequest:
    """A request on its way; `decision`: of the latest try."""

    session: ActiveSession
    planned: PlannedRequest
    number: int
    arrival_s: float
    abandon_after_s: float | None
    """The client leaves so long after the arrival, if it has no answer by then; None: it stays."""
    tried: list[EngineId] = field(default_factory=list)
    breaks: int = 0
    decision: Decision | None = None
    placement: tuple[Engine, Job] | None = None
    """Where it is; None: nowhere, as it is over."""

    def output_tokens(self, engine: Engine) -> int:
        """Of the answer that the engine would give. One that was left was to be longer, nobody knows how much: as long
        as its bound and the cache allow."""
        known, request = len(self.planned.reply), self.planned.request
        if self.abandon_after_s is None:
            return known
        room = engine.most_tokens - request.prompt.units
        return max(known, room if request.max_tokens is None else min(room, request.max_tokens))


def request_of(job: Job) -> ActiveRequest:
    assert isinstance(job.tag, ActiveRequest), "every job is of a request"
    return job.tag
