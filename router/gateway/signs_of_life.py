"""Telling the decider which engines give signs of life.

An engine that hangs may still pass its health checks. What tells it from one that is busy with long answers are the
heads and bodies of these, and only the data path sees them. So it says once a second from which engines any have come.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import NoReturn

from router.gateway.decider import Decider
from router.gateway.upstream import Upstream
from router.types import EngineId

PERIOD_S = 1.0


async def tell_signs_of_life(upstream: Upstream, decider: Decider, engines: Mapping[EngineId, str]) -> NoReturn:
    """Tell them until this task is cancelled. engines: the address of each."""
    while True:
        await asyncio.sleep(PERIOD_S)
        heard = set(upstream.heard())
        for engine, address in engines.items():
            if address in heard:
                decider.heard(engine)
