"""Clients of a run: a session in progress, and one of its requests on its way."""

from __future__ import annotations

from dataclasses import dataclass

from router.core.retries import Retries
from router.sim.fleet.dialog import Asked, Dialog
from router.sim.fleet.engine import Engine
from router.sim.fleet.job import Job
from router.sim.fleet.traffic import Session
from router.types import Decision


@dataclass(slots=True)
class Visit:
    """A session in progress; `number`: of its first request."""

    session: Session
    dialog: Dialog
    number: int
    turn: int = 0


@dataclass(slots=True, eq=False)
class Call:
    """A request on its way; `decision`: of the latest try."""

    visit: Visit
    asked: Asked
    number: int
    arrival_s: float
    left_s: float | None
    """The client leaves so long after the arrival, if it has no answer by then; None: it stays."""
    retries: Retries
    decision: Decision | None = None
    place: tuple[Engine, Job] | None = None
    """Where it is; None: nowhere, as it is over."""

    def tokens(self, engine: Engine) -> int:
        """Of the answer that the engine would give. One that was left was to be longer, nobody knows how much: as long
        as its bound and the cache allow."""
        known, request = len(self.asked.reply), self.asked.request
        if self.left_s is None:
            return known
        room = engine.most_tokens - request.prompt.units
        return max(known, room if request.max_tokens is None else min(room, request.max_tokens))


def call_of(job: Job) -> Call:
    assert isinstance(job.tag, Call), "every job is of a call"
    return job.tag
