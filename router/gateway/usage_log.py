"""The usage log: one line of JSON for every request, by which a team can be billed.

    time            when the request ended, Unix time in seconds
    key             the name of the client's key; null if none was asked for
    request_id, model, route, ending, engine     engine: of the last try; null if there was none
    prompt_tokens, cached_tokens, output_tokens  as the engine counts them; 0 if nothing was computed. cached_tokens are
                    a part of prompt_tokens; null if the engine did not tell
    estimated       true: the engine has not told its counts, as when the client left. Then prompt_tokens are the
                    router's estimate, and output_tokens those that had arrived

It holds no text of prompts and no keys. A thread writes the lines, each at once and whole, so several processes can
write to one file. A file that reaches `max_bytes` is renamed to FILE.1, and an older FILE.1 to FILE.2; whoever comes
first does that under the lock of FILE.lock. A line that cannot be written is counted, and said in the log.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import queue
import stat
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

from router.config import RecordingOptions
from router.errors import ConfigError
from router.types import Ending, Outcome

if TYPE_CHECKING:
    from router.gateway.exchange import Exchange

log = logging.getLogger("leafcutter.usage")
QUEUE = 65_536  # at most so many lines wait for the thread
CLOSE_S = 30.0
TEXT_CHARS = 256  # clients choose the names of models
NOTHING_DONE = (Ending.REJECTED, Ending.ENGINE_LOST, Ending.GATEWAY_FAULT)


class Usage(NamedTuple):
    """The fields of a line, in their order."""

    time: float
    key: str | None
    request_id: str
    model: str | None
    route: str
    ending: str
    engine: str | None
    prompt_tokens: int
    cached_tokens: int | None
    output_tokens: int
    estimated: bool


class UsageLog:
    """Writes the log at `path` while `running()`. Raises ConfigError if the file cannot be opened.

    max_bytes: the size at which the file is turned over. files: how many older ones are kept. wall_clock: Unix time,
    seconds.
    """

    def __init__(self, path: str, *, max_bytes: int, files: int, wall_clock: Callable[[], float]) -> None:
        self._path, self._max_bytes, self._files, self._wall_clock = path, max_bytes, files, wall_clock
        self._queue: queue.Queue[Usage | None] = queue.Queue(QUEUE)
        self.lost = 0
        """Lines that were not written, because the queue was full or the file could not be written."""
        self._failing = False
        try:
            self._file = self._open()
        except OSError as error:
            raise ConfigError("usage_log", path, f"a file that can be written ({error.strerror})") from None

    @classmethod
    def of(cls, options: RecordingOptions, wall_clock: Callable[[], float]) -> UsageLog | None:
        """None: the options ask for no usage log. Raises ConfigError."""
        if options.usage_log is None:
            return None
        size, files = options.record_max_bytes, options.record_files
        return cls(options.usage_log, max_bytes=size, files=files, wall_clock=wall_clock)

    # --- the data path ------------------------------------------------------------------------------------------

    def ended(self, exchange: Exchange, outcome: Outcome) -> None:
        """A client's request is over."""
        try:
            self._queue.put_nowait(summarize(exchange, outcome, self._wall_clock()))
        except queue.Full:
            self._lose("the queue is full")

    def close(self) -> None:
        """Nothing more is written. `running` calls this at its end."""
        os.close(self._file)

    @contextmanager
    def running(self) -> Iterator[None]:
        """Run the thread that writes. At the end of this context, all lines are written."""
        thread = threading.Thread(target=self._work, name="usage", daemon=True)
        thread.start()
        try:
            yield
        finally:
            try:
                self._queue.put(None, timeout=CLOSE_S)
            except queue.Full:
                log.error("the usage log %s stands still and is left incomplete", self._path)
            thread.join(CLOSE_S)

    # --- the thread ---------------------------------------------------------------------------------------------

    def _work(self) -> None:
        while (usage := self._queue.get()) is not None:
            try:
                self._write(json.dumps(usage._asdict(), separators=(",", ":")).encode() + b"\n")
                self._failing = False
            except OSError as error:
                self._lose(str(error))
        self.close()

    def _lose(self, reason: str) -> None:
        self.lost += 1
        if not self._failing:
            log.error("lines of the usage log %s are lost (%s); %d so far", self._path, reason, self.lost)
        self._failing = True

    def _write(self, line: bytes) -> None:
        if self._is_elsewhere() or os.fstat(self._file).st_size >= self._max_bytes:
            self._turn_over()
        if os.write(self._file, line) < len(line):  # the disk is full: what follows must not continue this line
            os.write(self._file, b"\n")
            raise OSError("the disk is full")

    def _is_elsewhere(self) -> bool:
        """Whether another process has turned the file over, or somebody has moved or removed it."""
        ours = os.fstat(self._file)
        try:
            there = os.stat(self._path)
        except FileNotFoundError:
            return True
        return (ours.st_dev, ours.st_ino) != (there.st_dev, there.st_ino)

    def _turn_over(self) -> None:
        """Go on in the file that is at the path, after turning it over if it is full."""
        with open(f"{self._path}.lock", "a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if os.path.exists(self._path) and os.path.getsize(self._path) >= self._max_bytes:
                for number in range(self._files - 1, 0, -1):
                    if os.path.exists(f"{self._path}.{number}"):
                        os.replace(f"{self._path}.{number}", f"{self._path}.{number + 1}")
                os.replace(self._path, f"{self._path}.1")
            fresh = self._open()
        os.close(self._file)
        self._file = fresh

    def _open(self) -> int:
        file = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NONBLOCK | os.O_CLOEXEC, 0o640)
        if not stat.S_ISREG(os.fstat(file).st_mode):
            os.close(file)
            raise OSError(0, "not a regular file")
        return file


def summarize(exchange: Exchange, outcome: Outcome, time: float) -> Usage:
    """The line of one request. outcome: how it ended for the client."""
    placement, request = exchange.placement, exchange.request
    prompt, output, estimated = outcome.prompt_tokens, outcome.output_tokens or 0, False
    if prompt is None:
        worked = placement is not None and (outcome.ending not in NOTHING_DONE or output > 0)
        prompt = round(placement.prompt_tokens) if worked and placement is not None else 0
        estimated = worked
    return Usage(
        time=round(time, 3),
        key=exchange.client.key.name or None,
        request_id=exchange.request_id,
        model=request.parsed.model[:TEXT_CHARS] if request is not None else None,
        route=exchange.route,
        ending=outcome.ending.value,
        engine=placement.engine if placement is not None else None,
        prompt_tokens=prompt,
        cached_tokens=outcome.cached_tokens,
        output_tokens=output,
        estimated=estimated,
    )
