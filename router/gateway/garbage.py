"""Tending Python's garbage collector, so that it does not pause the gateway.

The collector looks for garbage in cycles by walking over all containers, again and again over the old ones, and nothing
else runs meanwhile. The gateway keeps many containers (a full prefix index, ten thousand decisions), but it makes no
cycles: the objects of a request are freed as soon as nobody uses them, however the request ends (`test_garbage` counts
what is left). So every second, all containers that have survived are set aside (`gc.freeze`), and the collector has
only a few thousand young ones to walk over. Garbage that libraries leave in cycles is mostly found while it is young.
The rest waits until no request has come for a while; then the collector walks over everything.

`benchmarks/micro/stall.py` measures the pauses.
"""

from __future__ import annotations

import asyncio
import gc
import logging
from collections.abc import Callable
from typing import NoReturn

log = logging.getLogger("leafcutter.garbage")

YOUNG = 2_000  # the young containers are walked over when there are so many more of them: a walk takes about 1 ms
MIDDLE = 10  # after so many walks, their survivors are walked over once more
NEVER = 1 << 30  # a threshold that is never reached
SET_ASIDE_S = 1.0  # the time between two settings aside
IDLE_S = 60.0  # after so long without a request, everything is walked over
FULL_S = 600.0  # the shortest time between two such full walks


async def tend(idle: Callable[[], bool]) -> NoReturn:
    """Keep the collector's walks short in this process, until this task is cancelled.

    idle: returns whether no request is in flight.
    """
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
