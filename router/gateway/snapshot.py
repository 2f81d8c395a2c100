"""A file that keeps what the router has learned across restarts: JSON with a version, always replaced as a whole.

It holds the coefficients of latency with their normal equations, the speed of each engine (found again by its URL),
output lengths, tokens per byte, reuse of prefixes, and survival curves. It does not hold load or the blocks that
engines have cached, because neither is true after a restart. It names sessions and models as clients named them, so
only its owner may read it; it holds no text of prompts.

A file that cannot be restored is refused as a whole. The gateway then starts cold, says so in its log, and replaces the
file at the next save.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import tempfile
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import NoReturn

from router.core.learned_state import LearnedState
from router.errors import ConfigError, SnapshotError
from router.gateway.regular_file import check_regular
from router.saved_state import SavedFields, SavedState
from router.types import EngineId

log = logging.getLogger(__name__)

VERSION = 3


class Snapshot:
    """The file of what one router has learned. Raises ConfigError if its folder cannot be written.

    engines: the base URL of each engine. clock: the monotonic clock of the decisions, seconds. wall_clock: Unix time,
    seconds.
    """

    def __init__(
        self,
        path: str,
        learned: LearnedState,
        engines: Mapping[EngineId, str],
        *,
        clock: Callable[[], float],
        wall_clock: Callable[[], float],
    ) -> None:
        self._path, self._learned, self._engines = path, learned, engines
        self._clock, self._wall_clock = clock, wall_clock
        check_regular("snapshot", path)
        if not os.access(os.path.dirname(path) or ".", os.W_OK):
            raise ConfigError("snapshot", path, "a file in a folder that can be written")

    def start(self) -> bool:
        """Restore the file, and return whether that succeeded. If not, the router starts cold and the log says why."""
        try:
            self.restore()
        except FileNotFoundError:
            log.info("no snapshot at %s yet", self._path)
        except (SnapshotError, OSError) as error:
            log.warning("the snapshot %s is refused, starting cold: %s", self._path, error)
        else:
            log.info("learned state restored from %s", self._path)
            return True
        return False

    def restore(self) -> None:
        """Let the router learn what the file holds.

        Raises OSError if the file cannot be read, and SnapshotError if its content cannot be restored. Nothing changes
        then.
        """
        document = read(self._path)
        document.same("leafcutter_snapshot", VERSION)
        age_s = max(0.0, self._wall_clock() - document.number("saved_unix_s"))
        urls = document.fields("engines")
        ids = {url: engine for engine, url in self._engines.items()}
        names = {name: ids[urls.text(name)] for name in urls if urls.text(name) in ids}
        self._learned.load(document.fields("learned"), self._clock() - age_s, names)

    def save(self) -> None:
        """Replace the file.

        Raises OSError if the file cannot be written, and ValueError if something learned is not a finite number.
        """
        write(self._path, self._take())

    @asynccontextmanager
    async def running(self, interval_s: float) -> AsyncIterator[None]:
        """Save every `interval_s` seconds, and once more at the end. A save that fails is logged, and the older file
        stays."""
        task = asyncio.create_task(self._work(interval_s))
        try:
            yield
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
            try:
                self.save()
            except (OSError, ValueError) as error:
                self._fail(error)

    async def _work(self, interval_s: float) -> NoReturn:
        while True:
            await asyncio.sleep(interval_s)
            try:
                # The state is taken here, between two requests, and written in a thread, because disks are slow.
                writing = asyncio.ensure_future(asyncio.to_thread(write, self._path, self._take()))
                try:
                    await asyncio.shield(writing)
                except asyncio.CancelledError:
                    await asyncio.wait([writing])  # or this older state could replace the last one
                    raise
            except (OSError, ValueError) as error:
                self._fail(error)

    def _take(self) -> SavedState:
        return {
            "leafcutter_snapshot": VERSION,
            "saved_unix_s": self._wall_clock(),
            "engines": dict(self._engines),
            "learned": self._learned.dump(self._clock()),
        }

    def _fail(self, error: Exception) -> None:
        log.error("the snapshot %s could not be saved: %s", self._path, error)


def write(path: str, document: SavedState) -> None:
    """Write the whole file or nothing. Raises OSError, and ValueError for numbers that are not finite."""
    text = json.dumps(document, allow_nan=False)
    handle, temporary = tempfile.mkstemp(
        prefix=os.path.basename(path) + ".", suffix=".part", dir=os.path.dirname(path) or "."
    )
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def read(path: str) -> SavedFields:
    """Read the file. Raises OSError if that fails, and SnapshotError if it does not hold a complete JSON object."""
    try:
        with open(path, encoding="utf-8") as file:
            return SavedFields(json.load(file, parse_constant=_refuse), "snapshot")
    except (ValueError, RecursionError) as error:
        raise SnapshotError("the file", str(error), "whole JSON with finite numbers") from None


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} in it")
