"""Edges share the connections of one listening socket."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path

from router.processes.acceptor import Acceptor, ConnectionCounts
from tests.support.gateway_server import until


class TakingEdge:
    def __init__(self, path: str, slot: int, listener: socket.socket) -> None:
        self.taken: list[socket.socket] = []
        self.acceptor = Acceptor(ConnectionCounts(path), slot, lambda: len(self.taken), self.taken.append)
        self.acceptor.start([listener.dup()])

    def close(self) -> None:
        self.acceptor.close()
        for connection in self.taken:
            connection.close()


async def test_each_edge_takes_as_many_as_the_others_and_none_is_left(tmp_path: Path) -> None:
    path = str(tmp_path / "connections")
    ConnectionCounts.create(path, 3)
    with socket.create_server(("127.0.0.1", 0), backlog=128) as listener:
        one = TakingEdge(path, 0, listener)
        clients = [socket.create_connection(listener.getsockname()) for _ in range(10)]
        await until(lambda: len(one.taken) == 10)  # there is no other
        other = TakingEdge(path, 1, listener)
        clients += [socket.create_connection(listener.getsockname()) for _ in range(30)]
        await until(lambda: len(one.taken) + len(other.taken) == 40)
        assert len(one.taken) == len(other.taken) == 20
        one.acceptor.close()
        ConnectionCounts(path).tell(0, 0)  # it died, and its count stands there
        clients += [socket.create_connection(listener.getsockname()) for _ in range(10)]
        await until(lambda: len(other.taken) == 30)
        for client in clients:
            client.close()
        one.close()
        other.close()
        await asyncio.sleep(0)
