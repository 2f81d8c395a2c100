"""How edges share the connections of one listening socket, so that each has about as many.

The kernel wakes all edges for a connection, and whoever is first may take it, and with it all that wait. Clients keep
their connections, so one edge might serve most of them for hours. Therefore an edge takes one connection at a time, and
one that has more than another edge lets the others go first, for YIELD_S. The counts are in a file that all have
mapped. A count that is not true (its edge has just died) costs that delay and nothing else.
"""

from __future__ import annotations

import asyncio
import logging
import mmap
import socket
import struct
from collections.abc import Callable, Sequence

from router.core.failure_log import FailureLog

log = logging.getLogger("leafcutter.processes")
YIELD_S = 0.002
FULL_S = 1.0  # without a file descriptor left, so long is waited before the next try
COUNT = struct.Struct("=I")
ABSENT = (1 << 32) - 1


class ConnectionCounts:
    """The number of connections of each edge, by its slot. path: the file, of so many slots as `create` made."""

    def __init__(self, path: str) -> None:
        with open(path, "r+b") as file:
            self._map = mmap.mmap(file.fileno(), 0)
        self._all = struct.Struct(f"={len(self._map) // COUNT.size}I")

    @staticmethod
    def create(path: str, slots: int) -> None:
        with open(path, "xb") as file:
            file.write(COUNT.pack(ABSENT) * slots)

    def tell(self, slot: int, count: int) -> None:
        COUNT.pack_into(self._map, slot * COUNT.size, count)

    def absent(self, slot: int) -> None:
        """The edge takes no connections any more."""
        self.tell(slot, ABSENT)

    def fewest(self) -> int:
        """The smallest count of any edge."""
        counts: tuple[int, ...] = self._all.unpack_from(self._map)
        return min(counts)


class Acceptor:
    """Takes connections for one edge. count: returns how many it has. serve: gets each new one."""

    def __init__(
        self, counts: ConnectionCounts, slot: int, count: Callable[[], int], serve: Callable[[socket.socket], None]
    ) -> None:
        self._counts, self._slot, self._count, self._serve = counts, slot, count, serve
        self._loop = asyncio.get_running_loop()
        self._failures = FailureLog(log, self._loop.call_later)
        self._listeners: list[socket.socket] = []
        self._yielding: dict[socket.socket, asyncio.TimerHandle] = {}

    def start(self, listeners: Sequence[socket.socket]) -> None:
        self._counts.tell(self._slot, 0)
        self._listeners = list(listeners)
        for listener in self._listeners:
            listener.setblocking(False)
            self._loop.add_reader(listener, self._ready, listener)

    def close(self) -> None:
        """Take no more connections. Those that wait in the kernel are taken by others that listen."""
        for handle in self._yielding.values():
            handle.cancel()
        for listener in self._listeners:
            self._loop.remove_reader(listener)
            listener.close()
        self._listeners.clear()

    def _ready(self, listener: socket.socket) -> None:
        count = self._count()
        self._counts.tell(self._slot, count)
        if count > self._counts.fewest():
            self._pause(listener, YIELD_S)
        else:
            self._accept(listener)

    def _pause(self, listener: socket.socket, pause_s: float) -> None:
        self._loop.remove_reader(listener)
        self._yielding[listener] = self._loop.call_later(pause_s, self._resume, listener)

    def _resume(self, listener: socket.socket) -> None:
        del self._yielding[listener]
        self._loop.add_reader(listener, self._ready, listener)
        self._accept(listener)

    def _accept(self, listener: socket.socket) -> None:
        try:
            connection, _ = listener.accept()
        except (BlockingIOError, InterruptedError, ConnectionAbortedError):
            return  # another edge was faster, or the client has left
        except OSError as error:
            self._failures.tell("this machine", "accept", f"no connection of a client can be taken: {error}")
            return self._pause(listener, FULL_S)
        connection.setblocking(False)
        self._serve(connection)
        self._counts.tell(self._slot, self._count())
