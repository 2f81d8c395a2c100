"""Telling the eviction order of each engine when its sessions are expected back.

When the last answer of a session ends, its engine gets a hint: the id of the session and the seconds until its next
request. Hints wait for PERIOD_S, so that an engine gets a few messages a second however busy it is, and of a session
only the newest is sent. `engine_patches/hints.py` has the format and the limits of a message.

Hints are worth a few cache hits and nothing else. So a message that is lost is not sent again, an engine that is slow
gets no second message beside the first, and of an engine's hints at most MOST_WAITING wait: the oldest are dropped.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from typing import NoReturn

import httpx

from router.core.failure_log import FailureLog
from router.core.sessions import Session
from router.core.worker_url import split_address
from router.engines.probe import state_url
from router.types import EngineId

PERIOD_S, TIMEOUT_S = 0.25, 2.0
MOST_WAITING, MOST_IN_MESSAGE = 4096, 512


class HintSender:
    """Sends the hints of all sessions. key: that of the engines. offset: from an engine's port to that of its state.
    addresses: of all engines. failures: hears of engines that do not take hints."""

    def __init__(
        self,
        key: str,
        offset: int,
        addresses: Mapping[EngineId, str],
        failures: FailureLog,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._headers, self._offset = {"authorization": f"Bearer {key}"}, offset
        self._addresses, self._failures, self._clock = addresses, failures, clock
        self._waiting: dict[EngineId, dict[str, float]] = {}
        """By engine, the time at which each session is expected, the oldest hint first."""
        self._sending: dict[EngineId, asyncio.Task[None]] = {}

    def tell(self, session: Session) -> None:
        """A session has become idle: `Router.on_idle`."""
        engine, ended_s, return_s = session.engine, session.ended_s, session.return_s
        if engine is None or ended_s is None or return_s is None:
            return
        hints = self._waiting.setdefault(engine, {})
        hints.pop(session.id, None)
        hints[session.id] = ended_s + return_s
        if len(hints) > MOST_WAITING:
            del hints[next(iter(hints))]

    async def send_on(self, client: httpx.AsyncClient) -> NoReturn:
        """Send what waits until this task is cancelled."""
        try:
            while True:
                await asyncio.sleep(PERIOD_S)
                for engine in self._waiting.keys() - self._addresses.keys():  # it has left
                    del self._waiting[engine]
                for engine in list(self._waiting):
                    if engine not in self._sending and (url := self._url(engine)) is not None:
                        self._sending[engine] = asyncio.create_task(self._send(client, engine, url))
        finally:
            for task in self._sending.values():
                task.cancel()

    async def _send(self, client: httpx.AsyncClient, engine: EngineId, url: str) -> None:
        try:
            hints, now = self._take(engine), self._clock()
            message = [{"session": each, "seconds": max(0.0, round(at_s - now, 3))} for each, at_s in hints.items()]
            await self._post(client, engine, url, message)
        finally:
            del self._sending[engine]

    async def _post(self, client: httpx.AsyncClient, engine: EngineId, url: str, message: Sequence[object]) -> None:
        try:
            async with asyncio.timeout(TIMEOUT_S):
                answer = await client.post(url, json=message, headers=self._headers)
        except (httpx.HTTPError, httpx.InvalidURL, TimeoutError) as error:
            self._failures.tell(engine, "hints", f"hints of returning sessions are lost ({type(error).__name__})")
        else:
            if answer.status_code >= 400:
                self._failures.tell(
                    engine, f"hints {answer.status_code}", f"hints are refused with {answer.status_code}"
                )

    def _url(self, engine: EngineId) -> str | None:
        """Where the engine takes hints: on the port of its state, which each data-parallel rank has for itself."""
        base, rank = split_address(self._addresses[engine])
        page = state_url(base, self._offset + (rank or 0))
        return None if page is None else page.removesuffix("/metrics") + "/hints"

    def _take(self, engine: EngineId) -> dict[str, float]:
        """The oldest hints of the engine, as many as a message may have."""
        waiting = self._waiting[engine]
        if len(waiting) <= MOST_IN_MESSAGE:
            return self._waiting.pop(engine)
        return {session: waiting.pop(session) for session in list(waiting)[:MOST_IN_MESSAGE]}
