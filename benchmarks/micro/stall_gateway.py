"""The gateway that `stall` measures, from outside: its processes, started as the supervisor starts them."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import sys
import tempfile
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any

from benchmarks.live.gateway_process import resident_mb
from benchmarks.micro import stall_processes
from benchmarks.micro.stall_processes import EDGE, GATEWAY, ROUTER, Figures
from router.config import configure
from router.gateway.key_limits import SharedLimits
from router.gateway.listeners import listen
from router.processes.acceptor import ConnectionCounts
from router.processes.control import Orders, give_orders
from router.processes.supervisor import METRICS_ENV
from router.types import EngineId

START_S, END_S = 300.0, 20.0  # a process may take so long to fill its memory, and to end
POLL_S = 0.05
SETTLED_S = 1.5  # until the collector has set everything aside
CORES = sorted(os.sched_getaffinity(0))


@dataclass(frozen=True)
class Kind:
    """One kind of gateway and of its memory."""

    processes: int
    order: str
    full: bool
    blocks: int
    """Of a full prefix index."""

    @property
    def memory(self) -> str:
        return "full" if self.full else "empty"


class Measured:
    """One process of the gateway, from outside. Leaving the context ends it."""

    def __init__(self, role: str, orders: Orders, kind: Kind, collector: str) -> None:
        self.role, self._orders = role, orders
        self._flags = ["--order", kind.order, "--collector", collector, *["--full"] * kind.full]

    async def __aenter__(self) -> Measured:
        ours, theirs = socket.socketpair()
        environment = {name: value for name, value in os.environ.items() if name != METRICS_ENV}
        if self.role == EDGE:
            environment[METRICS_ENV] = self._orders.metrics
        with theirs:
            self._process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", stall_processes.__name__, self.role, str(theirs.fileno()), *self._flags),
                stdout=asyncio.subprocess.PIPE,
                env=environment,
                pass_fds=(theirs.fileno(), *self._orders.listeners),
            )
        give_orders(ours, self._orders)
        self._reader, self._writer = await asyncio.open_connection(sock=ours)
        return self

    async def ready(self, cores: Sequence[int]) -> None:
        """Wait until the process serves, and keep it to those cores. Raises SystemExit if it does not."""
        async with asyncio.timeout(START_S):
            if not await self._reader.readline():
                raise SystemExit(f"the {self.role} has ended")
        os.sched_setaffinity(self._process.pid, cores)

    async def take(self) -> Figures:
        """What its `Monitor` saw since it was asked last, and its memory."""
        assert self._process.stdout is not None
        self._process.send_signal(signal.SIGUSR1)
        figures: Figures = json.loads(await self._process.stdout.readline())
        return figures | {"memory_mb": resident_mb(self._process.pid)}

    async def __aexit__(self, *_: object) -> None:
        self._writer.close()
        try:
            async with asyncio.timeout(END_S):
                await self._process.wait()
        except TimeoutError:
            self._process.kill()
            await self._process.wait()


@asynccontextmanager
async def running(
    kind: Kind, engines: Mapping[EngineId, str], *, port: int, collector: str
) -> AsyncIterator[list[Measured]]:
    """The processes of a gateway of that kind, all of which serve."""
    config = configure(port=port, prefix_index_blocks=kind.blocks, log_level="warning")
    async with AsyncExitStack() as stack:
        orders = Orders("", config, engines, stack.enter_context(tempfile.TemporaryDirectory(prefix="leafcutter-")))

        async def start(role: str, **changes: Any) -> Measured:
            return await stack.enter_async_context(
                Measured(role, replace(orders, name=role, **changes), kind, collector)
            )

        if kind.processes == 1:
            found = [await start(GATEWAY)]
        else:
            os.mkdir(orders.metrics)
            ConnectionCounts.create(orders.connections, kind.processes)
            SharedLimits.create(orders.limits)
            listening = [stack.enter_context(each) for each in listen(config.server.host, config.server.port)]
            listeners = tuple(each.fileno() for each in listening)
            found = [await start(ROUTER)]  # the first, so that it is the last to end
            found += [await start(EDGE, slot=slot, listeners=listeners) for slot in range(kind.processes)]
        for each in found:
            await each.ready(gateway_cores(len(found)))
        async with asyncio.timeout(START_S):
            await _listening(port)
        await asyncio.sleep(SETTLED_S)
        yield found


async def _listening(port: int) -> None:
    """Wait until something takes connections at the port."""
    while True:
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            return writer.close()
        except ConnectionRefusedError:
            await asyncio.sleep(POLL_S)


def gateway_cores(processes: int) -> list[int]:
    """The cores of a gateway of so many processes: one for each, if that leaves one to engines and clients."""
    return CORES[: max(1, min(processes, len(CORES) - 1))]
