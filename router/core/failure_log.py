"""One line in the log for every failure of an engine, but not for each of thousands.

The first failure of an engine for one reason is logged at once, with the id of its request. Those that follow within
`quiet_s` are counted, and the count is logged when that time is over.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

Later = Callable[[float, Callable[[], None]], object]
"""Calls a function after that many seconds, as the event loop's `call_later` does."""


class FailureLog:
    """Memory: a number for each engine and reason of the last `quiet_s` seconds. Reasons are few, and never texts that
    an engine or a client made up."""

    def __init__(self, log: logging.Logger, later: Later, *, quiet_s: float = 10.0) -> None:
        self._log, self._later, self._quiet_s = log, later, quiet_s
        self._untold: dict[tuple[str, str], int] = {}

    def tell(self, engine: str, reason: str, words: str, request_id: str | None = None) -> None:
        """The engine failed. reason: the same word for all failures of this kind. words: what happened, for people."""
        key = engine, reason
        if key in self._untold:
            self._untold[key] += 1
            return
        self._log.warning("%s: %s%s", engine, words, "" if request_id is None else f" (request {request_id})")
        self._wait(key)

    def _wait(self, key: tuple[str, str]) -> None:
        self._untold[key] = 0
        self._later(self._quiet_s, lambda: self._end_wait(key))

    def _end_wait(self, key: tuple[str, str]) -> None:
        count = self._untold.pop(key)
        if count:
            engine, reason = key
            self._log.warning("%s: %d more failures (%s) within %g s", engine, count, reason, self._quiet_s)
            self._wait(key)
