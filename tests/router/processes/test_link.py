"""One end of a connection: how it takes in what comes at once."""

from __future__ import annotations

import asyncio
import socket
from collections import Counter

import pytest

from router.processes import protocol
from router.processes.link import TURN_MESSAGES, Link
from router.processes.protocol import FromEdge, ProtocolError, frame

MANY = 10 * TURN_MESSAGES + 3


async def turns_of(link: Link[FromEdge], data: bytes) -> Counter[int]:
    """How many messages are taken in during each turn of the event loop when `data` comes at once, and then the end."""
    ended, turns, turn, take = asyncio.Event(), Counter[int](), 0, link.receive

    def receive(message: FromEdge) -> None:
        turns[turn] += 1
        take(message)

    link.receive, link.lost = receive, ended.set
    ours, theirs = socket.socketpair()
    theirs.sendall(data)
    theirs.close()
    connecting = asyncio.create_task(asyncio.get_running_loop().create_connection(lambda: link, sock=ours))
    async with asyncio.timeout(10):
        while not ended.is_set():
            await asyncio.sleep(0)
            turn += 1
    await connecting
    return turns


async def test_many_messages_are_taken_in_over_several_turns_in_their_order() -> None:
    taken: list[FromEdge] = []
    sent = [protocol.FirstToken(serial, float(serial)) for serial in range(MANY)]
    link: Link[FromEdge] = Link(protocol.from_edge)
    link.receive = taken.append
    turns = await turns_of(link, b"".join(map(frame, sent)))
    assert taken == sent
    assert max(turns.values()) == TURN_MESSAGES


@pytest.mark.parametrize("serial", [0, TURN_MESSAGES + 1])
async def test_nothing_is_taken_in_behind_what_breaks_a_rule(serial: int) -> None:
    taken: list[FromEdge] = []

    def take(message: FromEdge) -> None:
        assert isinstance(message, protocol.FirstToken)
        if message.serial == serial:
            raise ProtocolError("a rule")
        taken.append(message)

    link: Link[FromEdge] = Link(protocol.from_edge)
    link.receive = take
    await turns_of(link, b"".join(frame(protocol.FirstToken(each, 0.0)) for each in range(MANY)))
    assert len(taken) == serial
