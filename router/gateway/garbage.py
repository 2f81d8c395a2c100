"""The garbage collector, kept from stopping the gateway.

Python looks for garbage in cycles by walking over its containers, again and again over the old ones, and nothing else
runs meanwhile. The gateway keeps many containers (a full prefix index, ten thousand decisions) and makes no cycles: the
objects of a request go when their last user does, however it ends (`test_garbage` counts what is left). So every second
whatever has survived is set aside for good (`gc.freeze`), which leaves the collector a few thousand young containers to
walk over. What libraries leave behind in cycles is mostly found young; the rest waits until no request has come for a
while, when all is walked over.

Figures: `benchmarks/micro/stall.py`.
"""

from __future__ import annotations

import asyncio
import gc
import logging
from collections.abc import Callable
from typing import NoReturn

log = logging.getLogger("leafcutter.garbage")

YOUNG = 2_000  # new containers, less those that are gone, at which the young ones are walked over: some 1 ms
MIDDLE = 10  # such walks before what survived them is walked over once more
NEVER = 1 << 30
SET_ASIDE_S = 1.0
IDLE_S = 60.0  # so long without a request, then all is walked over
FULL_S = 600.0  # and not again so soon


async def tend(idle: Callable[[], bool]) -> NoReturn:
    """Keeps the collector's walks short in this process until it is cancelled. idle: no request is on its way."""
    thresholds = gc.get_threshold()
    gc.collect()
    gc.freeze()
    gc.set_threshold(YOUNG, MIDDLE, NEVER)
    try:
        idle_s = since_full_s = 0.0
        while True:
            await asyncio.sleep(SET_ASIDE_S)
            idle_s = idle_s + SET_ASIDE_S if idle() else 0.0
            since_full_s += SET_ASIDE_S
            if idle_s >= IDLE_S and since_full_s >= FULL_S:
                since_full_s = 0.0
                gc.unfreeze()
                log.debug("%d objects of garbage in cycles", gc.collect())
            else:
                gc.collect(1)
            gc.freeze()
    finally:
        gc.set_threshold(*thresholds)
        gc.unfreeze()
