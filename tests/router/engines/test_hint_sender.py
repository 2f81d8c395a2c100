"""Hints on their way to engines that take, refuse, lose or never answer them."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
import pytest

from router.core.failure_log import FailureLog
from router.core.sessions import Session
from router.engines import hint_sender
from router.engines.hint_sender import MOST_IN_MESSAGE, MOST_WAITING, HintSender
from router.types import EngineId

E0, E1 = EngineId("engine-0"), EngineId("engine-1-dp1")


class Engines:
    """Takes messages. Those to the port 1501 are answered with `status`, or never."""

    def __init__(self) -> None:
        self.taken: list[tuple[str, list[dict[str, object]]]] = []
        self.status: int | None = 204
        self.asked = 0

    async def __call__(self, request: httpx.Request) -> httpx.Response:
        assert request.headers["authorization"] == "Bearer a key of the engines"
        self.asked += 1
        if self.status is None:
            await asyncio.Event().wait()
        if self.status == 0:
            raise httpx.ConnectError("refused")
        self.taken.append((str(request.url), json.loads(request.content)))
        return httpx.Response(self.status or 204)


@asynccontextmanager
async def sending(
    engines: Engines, addresses: dict[EngineId, str], monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[HintSender]:
    monkeypatch.setattr(hint_sender, "PERIOD_S", 0.01)
    monkeypatch.setattr(hint_sender, "TIMEOUT_S", 0.05)
    failures = FailureLog(
        logging.getLogger("leafcutter.discovery"), lambda s, call: asyncio.get_running_loop().call_later(s, call)
    )
    sender = HintSender("a key of the engines", 500, addresses, failures, lambda: 100.0)
    async with httpx.AsyncClient(transport=httpx.MockTransport(engines)) as client:
        task = asyncio.create_task(sender.send_on(client))
        try:
            yield sender
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


def idle(name: str, return_s: float = 10.0, engine: EngineId | None = E0, ended_s: float = 100.0) -> Session:
    return Session(name, None, None, ended_s, engine=engine, ended_s=ended_s, return_s=return_s)


async def until_taken(engines: Engines, messages: int) -> None:
    async with asyncio.timeout(5):
        while len(engines.taken) < messages:
            await asyncio.sleep(0.005)


async def test_hints_go_together_and_of_a_session_only_the_newest(monkeypatch: pytest.MonkeyPatch) -> None:
    engines = Engines()
    async with sending(engines, {E0: "http://a:1000", E1: "http://b:1000#1"}, monkeypatch) as sender:
        for session in (
            idle("x"),
            idle("y", 3.0, ended_s=98.5),
            idle("x", 7.0),
            idle("z", 1.0, E1),
            idle("late", 1.0, ended_s=50.0),
        ):
            sender.tell(session)
        await until_taken(engines, 2)
    found = dict(engines.taken)
    assert found["http://a:1500/hints"] == [
        {"session": "y", "seconds": 1.5},
        {"session": "x", "seconds": 7.0},
        {"session": "late", "seconds": 0.0},
    ]
    assert found["http://b:1501/hints"] == [{"session": "z", "seconds": 1.0}]


async def test_a_session_of_which_nothing_is_known_gives_no_hint(monkeypatch: pytest.MonkeyPatch) -> None:
    engines = Engines()
    async with sending(engines, {E0: "http://a:1000"}, monkeypatch) as sender:
        sender.tell(idle("x", engine=None))
        sender.tell(Session("y", None, None, 0.0, engine=E0))
        sender.tell(idle("left", engine=E1))  # an engine that is not there
        await asyncio.sleep(0.05)
    assert engines.asked == 0
    assert not sender._waiting


async def test_what_waits_is_bounded_and_goes_in_messages_of_a_bounded_size(monkeypatch: pytest.MonkeyPatch) -> None:
    engines = Engines()
    async with sending(engines, {E0: "http://a:1000"}, monkeypatch) as sender:
        for number in range(MOST_WAITING + 88):
            sender.tell(idle(f"s{number}"))
        await until_taken(engines, MOST_WAITING // MOST_IN_MESSAGE)
    sessions = [hint["session"] for _, message in engines.taken for hint in message]
    assert sessions == [f"s{number}" for number in range(88, MOST_WAITING + 88)]
    assert max(len(message) for _, message in engines.taken) == MOST_IN_MESSAGE


@pytest.mark.parametrize(
    ("status", "words"), [(0, "are lost (ConnectError)"), (None, "are lost (TimeoutError)"), (401, "refused with 401")]
)
async def test_lost_and_refused_hints_are_named_once_and_hold_up_nothing(
    status: int | None, words: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    engines = Engines()
    engines.status = status
    async with sending(engines, {E0: "http://a:1000"}, monkeypatch) as sender:
        for number in range(4):
            sender.tell(idle(f"s{number}"))
            async with asyncio.timeout(5):
                while engines.asked <= number:
                    await asyncio.sleep(0.005)
        engines.status = 204
        engines.taken.clear()
        async with asyncio.timeout(5):
            while not engines.taken:
                sender.tell(idle("good"))
                await asyncio.sleep(0.02)
    assert sum(words in message for message in caplog.messages) == 1
