"""What the router has learned, kept in a file across restarts: JSON with a version, replaced as a whole.

Kept: latency coefficients with their normal equations, each engine's speed (found again by its URL), output lengths,
tokens a byte, reuse, survival curves. Not kept: load, and what engines hold, which a restart makes untrue. Sessions and
models are in it by the names that clients gave them, hence readable by its owner alone; no text of prompts is.

A file that does not fit is refused as a whole: the gateway starts cold, says so, and replaces it at the next save.
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
from router.saved_state import SavedFields, SavedState
from router.types import EngineId

log = logging.getLogger(__name__)

VERSION = 3


class Snapshot:
    """What one router has learned, in one file.

    engines: base URL of each. clock: monotonic, that of the decisions; wall_clock: Unix time; both seconds.
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
        if not os.access(os.path.dirname(path) or ".", os.W_OK) or os.path.isdir(path):
            raise ConfigError("snapshot", path, "a file in a folder that can be written")

    def start(self) -> bool:
        """Whether the router now knows what the file holds; it starts cold, with a warning, if that does not fit."""
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
        """Raises SnapshotError, and changes nothing, if the file does not fit; OSError if it cannot be read."""
        document = read(self._path)
        document.same("leafcutter_snapshot", VERSION)
        age_s = max(0.0, self._wall_clock() - document.number("saved_unix_s"))
        urls = document.fields("engines")
        ids = {url: engine for engine, url in self._engines.items()}
        names = {name: ids[urls.text(name)] for name in urls if urls.text(name) in ids}
        self._learned.load(document.fields("learned"), self._clock() - age_s, names)

    def save(self) -> None:
        """Replaces the file. Raises OSError if it cannot be written, ValueError if what was learned is no number."""
        write(self._path, self._take())

    @asynccontextmanager
    async def running(self, interval_s: float) -> AsyncIterator[None]:
        """Saves every interval_s, and once more at the end. Failures are logged; the file before stays."""
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
                # Taken here, between two requests; written elsewhere, for disks are slow.
                writing = asyncio.ensure_future(asyncio.to_thread(write, self._path, self._take()))
                try:
                    await asyncio.shield(writing)
                except asyncio.CancelledError:
                    await asyncio.wait([writing])  # else an older state could replace the last one
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
    """The whole file or none of it. Raises OSError, ValueError for numbers that are not finite."""
    text = json.dumps(document, allow_nan=False)
    handle, part = tempfile.mkstemp(
        prefix=os.path.basename(path) + ".", suffix=".part", dir=os.path.dirname(path) or "."
    )
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except BaseException:
        os.unlink(part)
        raise


def read(path: str) -> SavedFields:
    """Raises SnapshotError if it is no whole JSON object, OSError if it cannot be read."""
    try:
        with open(path, encoding="utf-8") as file:
            return SavedFields(json.load(file, parse_constant=_refuse), "snapshot")
    except (ValueError, RecursionError) as error:
        raise SnapshotError("the file", str(error), "whole JSON with finite numbers") from None


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} in it")
