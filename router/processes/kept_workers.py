"""Which engines there are, kept for the next router process: what operators change outlives a crash of the present one.

The file is in the private folder of the processes, so a new start of the whole gateway begins with the options again.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress

from router.core.workers import Workers
from router.errors import ConfigError, SnapshotError
from router.gateway.snapshot import read, write

log = logging.getLogger("leafcutter.processes")
RESUME_S = 5.0  # edges tell the next router process within that time of what is running


def keep(workers: Workers, path: str) -> None:
    """Take over what the last router process has written, if there was one, and write down every change from now on.

    A change is written before anybody is told of it.
    """
    with suppress(FileNotFoundError):
        try:
            workers.load(read(path))
        except (SnapshotError, ConfigError, ValueError) as error:
            log.error("the engines of the last router process are lost: %s", error)
        asyncio.get_running_loop().call_later(RESUME_S, workers.sweep)

    def save() -> None:
        try:
            write(path, workers.dump())
        except OSError as error:
            log.error("the engines could not be kept for the next router process: %s", error)

    workers.listeners.insert(0, save)
