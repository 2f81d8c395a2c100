"""GET /sessions: the conversations that the router knows, for operators, the one seen last first (`?limit=`, 100)."""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice
from typing import Any

from fastapi import FastAPI, Request, Response

from router.core.router import Router
from router.core.sessions import Session
from router.gateway.admin import ascii_json, limit_of

SESSIONS, MOST_SESSIONS = 100, 10_000


def add_session_routes(app: FastAPI, router: Router, clock: Callable[[], float]) -> None:
    """Add the route above. clock: that of the decisions, seconds."""

    @app.get("/sessions")
    async def sessions(request: Request) -> Response:
        limit, now = limit_of(request.query_params.get("limit"), SESSIONS, MOST_SESSIONS), clock()
        held = router.holding.sessions()
        newest = islice(router.sessions, limit)
        found = [describe(session, now, held=session.id in held) for session in newest]
        status = router.sessions.status()
        counts = {"known": status.known, "running": status.running, "held": len(held)}
        return ascii_json({**counts, "sessions": found})


def describe(session: Session, now: float, *, held: bool) -> dict[str, Any]:
    """One session in JSON types. now: on the clock of the decisions. held: a request of it waits to be placed."""
    idle_s = None if session.running or session.ended_s is None else now - session.ended_s
    return {
        "session": session.id,
        "name": session.name,
        "parent": session.parent,
        "engine": session.engine,
        "cached_tokens": round(session.context_tokens),
        "requests": session.requests,
        "running": session.running,
        "held": held,
        "last_ending": session.stop.word,
        "last_tool": session.tool,
        "idle_s": None if idle_s is None else round(idle_s, 3),
        "predicted_return_s": None if session.return_s is None else round(session.return_s, 3),
        "return_error": None if session.error is None else round(session.error, 4),
    }
