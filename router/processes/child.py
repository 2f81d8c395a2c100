"""One process that the supervisor has started."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
import time
from collections.abc import Mapping

from router.processes.control import READY, Orders, give_orders


class Child:
    """The process, seen from the supervisor. `name` is for the log."""

    def __init__(
        self,
        name: str,
        process: asyncio.subprocess.Process,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        self.name, self._process, self._reader, self._writer = name, process, reader, writer
        self._began_s = time.monotonic()
        self.ready = asyncio.Event()
        """The process serves."""
        self.ended: asyncio.Task[int] = asyncio.create_task(self._follow())
        """Done when the process has ended, with its exit status; a negative one is a signal's number."""

    @classmethod
    async def start(cls, orders: Orders, env: Mapping[str, str]) -> Child:
        """Start a process and give it its orders. env: its environment."""
        ours, theirs = socket.socketpair()
        with theirs:
            process = await asyncio.create_subprocess_exec(
                # -P: a folder named `router` in the present folder must not take this package's place.
                *(sys.executable, "-P", "-m", "router.processes", orders.name, str(theirs.fileno())),
                stdin=asyncio.subprocess.DEVNULL,
                env={**env, "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)},
                pass_fds=(theirs.fileno(), *orders.listeners),
                start_new_session=True,  # a Ctrl-C reaches the supervisor alone
            )
        give_orders(ours, orders)
        return cls(orders.name, process, *await asyncio.open_connection(sock=ours))

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def age_s(self) -> float:
        return time.monotonic() - self._began_s

    async def _follow(self) -> int:
        with contextlib.suppress(ConnectionError):
            while line := await self._reader.readline():
                if line.decode().strip() == READY:
                    self.ready.set()
        self._writer.close()
        return await self._process.wait()

    def tell(self, *words: object) -> None:
        """Say a word, which may have others behind it. A process that has ended does not hear it."""
        if not self._writer.is_closing():
            self._writer.write(" ".join(map(str, words)).encode() + b"\n")

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(signal.SIGKILL)

    async def serves(self, timeout_s: float) -> bool:
        """Wait until the process serves. Return False if it has ended instead, or if that takes too long."""
        ready = asyncio.ensure_future(self.ready.wait())
        await asyncio.wait((ready, self.ended), timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        ready.cancel()
        return self.ready.is_set() and not self.ended.done()
