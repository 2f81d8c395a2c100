from __future__ import annotations

import asyncio
from typing import Any

import pytest

from router.errors import BadRequest, EngineLost, EngineTimeout, GatewayFull, NoEngine, PayloadTooLarge
from router.gateway.client import BodyMemory, Client, ClientGone, Message

DISCONNECT = {"type": "http.disconnect"}


def chunk(body: bytes, more: bool = False) -> Message:
    return {"type": "http.request", "body": body, "more_body": more}


class Wire:
    """An ASGI server's side of one request: gives `incoming` in turn, then waits; keeps what it is sent."""

    def __init__(self, *incoming: Message, headers: list[tuple[bytes, bytes]] | None = None) -> None:
        self.incoming = list(incoming)
        self.leaves = asyncio.Event()
        self.sent: list[Message] = []
        self.client = Client({"path": "/v1/completions", "headers": headers or []}, self.receive, self.send)

    async def receive(self) -> Message:
        if self.incoming:
            return self.incoming.pop(0)
        await self.leaves.wait()
        return DISCONNECT

    async def send(self, message: Message) -> None:
        self.sent.append(message)

    @property
    def body(self) -> bytes:
        return b"".join(message.get("body", b"") for message in self.sent)


async def test_a_body_in_pieces_is_read_whole() -> None:
    wire = Wire(chunk(b"ab", more=True), chunk(b"cd"))
    assert await wire.client.read_body(4) == b"abcd"


@pytest.mark.parametrize("headers", [[], [(b"content-length", b"5")]])
async def test_too_large_a_body_is_refused(headers: list[tuple[bytes, bytes]]) -> None:
    wire = Wire(chunk(b"abc", more=True), chunk(b"de"), headers=headers)
    with pytest.raises(PayloadTooLarge):
        await wire.client.read_body(4)
    assert len(wire.incoming) == (2 if headers else 0)


async def test_all_bodies_together_have_a_limit() -> None:
    refused: list[str] = []
    memory = BodyMemory(10, refused.append)
    first, second = Wire(chunk(b"x" * 7)), Wire(chunk(b"abc", more=True), chunk(b"d"))
    await first.client.read_body(9, memory)
    with pytest.raises(GatewayFull):
        await second.client.read_body(9, memory)
    assert (memory.held_bytes, refused) == (10, ["gateway_full"])
    memory.give_back(second.client.held_bytes)
    memory.give_back(first.client.held_bytes)
    assert memory.held_bytes == 0


async def test_a_client_may_leave_inside_its_body() -> None:
    with pytest.raises(ClientGone):
        await Wire(chunk(b"ab", more=True), DISCONNECT).client.read_body(9)


async def test_leaving_interrupts_the_work() -> None:
    wire, cleaned = Wire(), asyncio.Event()

    async def work() -> None:
        wire.leaves.set()
        try:
            await asyncio.Event().wait()
        finally:
            cleaned.set()

    with pytest.raises(ClientGone), wire.client.waiting(60):
        await work()
    assert cleaned.is_set()
    assert wire.client.gone
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0


async def test_time_limits_interrupt_the_work() -> None:
    wire = Wire()
    with pytest.raises(EngineTimeout), wire.client.waiting(0.01):
        await asyncio.Event().wait()
    assert (wire.client.gone, wire.client.expired) == (False, True)


async def test_work_that_ends_is_left_alone_and_so_are_its_errors() -> None:
    wire = Wire()
    with wire.client.waiting(60):
        await asyncio.sleep(0)
    with pytest.raises(EngineLost), wire.client.waiting(60):
        raise EngineLost("x")
    assert not wire.client.gone


async def test_somebody_elses_cancellation_passes_through() -> None:
    async def work() -> None:
        with Wire().client.waiting(60):
            await asyncio.Event().wait()

    task = asyncio.create_task(work())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_disconnect_told_after_the_answer_is_no_leaving() -> None:
    wire = Wire()
    with wire.client.waiting(60):
        await wire.client.reply(200, [], b"x")
        wire.leaves.set()
        for _ in range(5):
            await asyncio.sleep(0)
    assert not wire.client.started or wire.body == b"x"


async def test_an_answers_head_leaves_with_its_first_bytes() -> None:
    wire = Wire()
    wire.client.open(200, [(b"a", b"1")], streams=True)
    assert (wire.sent, wire.client.started) == ([], False)
    await wire.client.write(b"x")
    await wire.client.write(b"y", last=True)
    assert wire.client.started
    assert [m["type"] for m in wire.sent] == ["http.response.start", "http.response.body", "http.response.body"]
    assert [m["more_body"] for m in wire.sent[1:]] == [True, False]


async def test_an_error_is_the_answer_if_there_was_none() -> None:
    wire = Wire()
    wire.client.open(200, [], streams=True)
    await wire.client.fail(NoEngine("none"), [(b"x-request-id", b"r")])
    head: dict[bytes, Any] = dict(wire.sent[0]["headers"])
    assert wire.sent[0]["status"] == 503
    assert (head[b"x-request-id"], head[b"retry-after"]) == (b"r", b"5")
    assert head[b"content-length"] == str(len(wire.body)).encode()


@pytest.mark.parametrize(("torn", "start"), [(False, b"data: {"), (True, b"\n\ndata: {")])
async def test_an_error_inside_a_stream_is_its_last_event(torn: bool, start: bytes) -> None:
    wire = Wire()
    wire.client.open(200, [], streams=True)
    await wire.client.write(b"data: 1")
    wire.client.torn = torn
    await wire.client.fail(BadRequest("bad"), [])
    assert wire.sent[-1]["body"].startswith(start)
    assert wire.sent[-1]["body"].endswith(b"}\n\n")
    assert not wire.sent[-1]["more_body"]
