"""Noticing that files have changed, by looking at them.

inotify, and libraries over it such as watchfiles, hear nothing of files on network file systems, and the files of a
Kubernetes secret are links that change elsewhere. Looking at a few files twice a second costs nothing and sees all of
these.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Sequence
from typing import NoReturn

from router.errors import ConfigError

log = logging.getLogger("leafcutter.files")
LOOK_S = 0.5

Stamp = tuple[tuple[int, int, int] | None, ...]


def stamp(paths: Sequence[str]) -> Stamp:
    """What differs when one of the files has been written or replaced."""
    return tuple(map(_stamp, paths))


def _stamp(path: str) -> tuple[int, int, int] | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_mtime_ns, found.st_ino, found.st_size


async def watch(paths: Sequence[str], known: Stamp, load: Callable[[], None], *, look_s: float = LOOK_S) -> NoReturn:
    """Call `load` whenever the files have changed, and have been left alone since the last look.

    So a file that is just being written is not read halfway. known: the stamp from before the files were last read. If
    `load` raises ConfigError, that is logged, and what was loaded before stays.
    """
    before = known
    while True:
        await asyncio.sleep(look_s)
        present = stamp(paths)
        if present != known and present == before:
            known = present
            try:
                load()
            except ConfigError as error:
                log.error("%s; what was read before stays", error)
        before = present
