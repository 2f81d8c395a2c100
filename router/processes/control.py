"""What the supervisor and one of its processes tell each other, over a socket pair: first the orders, then words.

A word is a line of text. The end of the connection means that the other end is gone: a process without its supervisor
stops.
"""

from __future__ import annotations

import asyncio
import pickle
import socket
import struct
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

from router.config import Config
from router.gateway.config_file import ConfigFile
from router.types import EngineId

READY = "ready"
"""The process serves. This is the only word that it says."""
GO = "go"
"""To a router process: it is the one that decides from now on."""
RETIRE = "retire"
"""To an edge: take no new connections, and end when the present ones are done."""
LEAVE = "leave"
"""To an edge: tell load balancers that it is not ready, and serve on."""
STOP = "stop"
"""Shut down in order."""
HURRY = "hurry"
"""After STOP: wait for no running request. A router process never does."""
RELOAD = "reload"
"""To a router process: read the file of options again."""
RESTARTS = "restarts"
"""To the router process: how often edges, and router processes, have died so far (two numbers)."""

ROUTER = "router"
"""The name of every router process; that of an edge is another."""

LENGTH = struct.Struct("<I")


@dataclass(frozen=True)
class Orders:
    """What a process is started for."""

    name: str
    config: Config
    engines: Mapping[EngineId, str]
    """The base URL of each engine at the start."""
    folder: str
    """The private folder of all processes."""
    file: ConfigFile | None = None
    """The file that the options come from, if it is to be followed."""
    slot: int = 0
    """Which of the edges the process is."""
    edges: int = 1
    """How many edges there are."""
    listeners: tuple[int, ...] = ()
    """File descriptors of the sockets on which clients (of a router process: operators) connect, which the process has
    inherited."""
    lane: int = 0
    """Where an edge counts its running requests (`key_limits.SharedLimits`)."""

    @property
    def decisions(self) -> str:
        """The Unix socket of the protocol."""
        return f"{self.folder}/decisions"

    @property
    def rest(self) -> str:
        """The Unix socket on which the router process answers all that edges do not."""
        return f"{self.folder}/rest"

    @property
    def connections(self) -> str:
        """The file in which edges count their connections."""
        return f"{self.folder}/connections"

    @property
    def limits(self) -> str:
        """The file that holds the state of clients' limits."""
        return f"{self.folder}/limits"

    @property
    def keys(self) -> str:
        """The supervisor's copy of the clients' keys: those that were good last."""
        return f"{self.folder}/keys"

    @property
    def metrics(self) -> str:
        """The folder in which edges count."""
        return f"{self.folder}/metrics"


def give_orders(connection: socket.socket, orders: Orders) -> None:
    """The supervisor's first words."""
    content = pickle.dumps(orders)
    connection.sendall(LENGTH.pack(len(content)) + content)


class Control:
    """The end of the process that was started. orders: what it was started for."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        (length,) = LENGTH.unpack(self._read(LENGTH.size))
        orders = pickle.loads(self._read(length))
        assert isinstance(orders, Orders)
        self.orders = orders
        self.orphaned = False
        """The supervisor has gone without a word."""

    def _read(self, size: int) -> bytes:
        content = b""
        while len(content) < size:
            chunk = self._connection.recv(size - len(content))
            if not chunk:
                raise SystemExit("the supervisor has gone")
            content += chunk
        return content

    def say_ready(self) -> None:
        try:
            self._connection.sendall(READY.encode() + b"\n")
        except OSError:
            self.orphaned = True  # `listen` notices too

    async def listen(self, verbs: Mapping[str, Callable[[list[str]], None]]) -> None:
        """Call the verb of each word with the rest of its line, and at the end of the connection that of STOP."""
        reader, writer = await asyncio.open_connection(sock=self._connection)
        try:
            while line := await reader.readline():
                word, *rest = line.decode().split()
                verbs[word](rest)
        except ConnectionError:
            pass
        finally:
            writer.close()
        self.orphaned = True
        verbs[STOP]([])


async def first_of(*events: Awaitable[object]) -> None:
    """Wait until one of these has happened, and for the others no longer."""
    waiting = [asyncio.ensure_future(event) for event in events]
    try:
        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for each in waiting:
            each.cancel()
