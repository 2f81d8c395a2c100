"""What `fuzz` feeds: a part of the gateway that sees the bytes of strangers. The parts are in `fuzz_clients`,
`fuzz_engines` and `fuzz_processes`, by whose bytes they see."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from typing import Any

from router.config import configure
from router.core.router import Router
from router.gateway import apis
from router.types import EngineId, EngineInfo

ROUTES = tuple(apis.TABLE)
ENGINES = EngineId("engine-0"), EngineId("engine-1")
ADDRESSES = {ENGINES[0]: "http://127.0.0.1:1", ENGINES[1]: "http://127.0.0.1:2"}


def make_router() -> Router:
    config = configure(policy="lbgr", lbgr_cold_samples=0, decision_log_size=100)
    router = Router(config.routing, config.policies, rng=random.Random(1))
    for engine in ENGINES:
        router.add_engine(engine)
        router.set_info(engine, EngineInfo(models=("m",)))
        router.set_health(engine, True)
    return router


class Target:
    """One part. It takes an input, and returns whether it was accepted; if not, it was refused by the declared error.
    Anything else that is raised is a fault.

    seeds: inputs to begin with. weight: its share of all inputs.
    """

    seeds: Sequence[bytes]
    weight: float

    async def accepts(self, data: bytes, rng: random.Random) -> bool:
        raise NotImplementedError


class Wire(asyncio.Transport):
    """A transport that keeps what is written to it, and never sends anything."""

    def __init__(self) -> None:
        super().__init__()
        self.written = bytearray()
        self._closing = False

    def write(self, data: Any) -> None:
        self.written += data

    def close(self) -> None:
        self._closing = True

    abort = close

    def is_closing(self) -> bool:
        return self._closing

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        """Nobody reads it."""

    def get_write_buffer_size(self) -> int:
        return 0

    pause_reading = resume_reading = write_eof
