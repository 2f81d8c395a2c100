"""The limits of clients' keys: requests and tokens a minute, and requests at a time.

A limit a minute is a bucket (GCRA, as in ATM and in most rate limiters) that may hold as much as the limit and empties
steadily by `limit / 60` a second. A request puts 1 into that of requests. Into that of tokens it puts the estimate of
its prompt when it is admitted, and when it ends the difference from what it really took, so a bucket may be
overfull for a while. A request whose estimate is larger than the limit is admitted when the bucket is empty: it would
never be otherwise.

All edges share the buckets: they are rows of one file that each has mapped, and each change happens under its lock, so
a limit holds for the whole gateway whichever edge a client meets. That takes some microseconds and no message. The
library `limits` was not taken, because it shares state only by Redis or memcached, and cannot correct what it has
counted. In a row, each edge counts its running requests in a lane of its own, which the supervisor clears when the edge
has died.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from router.errors import RateLimited
from router.gateway.key_file import MOST_NAMES
from router.gateway.tenants import ClientKey, KeyLimits
from router.types import Ending, Outcome

BUCKET = struct.Struct("=dd")
"""How full a bucket is, and when it was, seconds."""
LANES = 128
COUNT = struct.Struct("=I")
COUNTS = struct.Struct(f"={LANES}I")
REQUESTS, TOKENS, RUNNING = 0, BUCKET.size, 2 * BUCKET.size  # places in a row
ROW_BYTES = RUNNING + COUNTS.size
MINUTE_S = 60.0
BUSY_RETRY_S = 1.0  # nobody knows when a running request ends

Headers = list[tuple[bytes, bytes]]
Levels = tuple[float, float]
"""How full the buckets of requests and of tokens are."""


class SharedLimits:
    """The state of all limits, for one process.

    path: the file that processes share, as `create` made it; None: no other process has it. lane: where this process
    counts its running requests. clock: CLOCK_MONOTONIC, seconds, which all processes share.
    """

    def __init__(self, clock: Callable[[], float], path: str | None = None, lane: int = 0) -> None:
        self._clock, self._lane = clock, lane
        self._file = None if path is None else os.open(path, os.O_RDWR | os.O_CLOEXEC)  # open as long as the process
        self._map = mmap.mmap(-1 if self._file is None else self._file, MOST_NAMES * ROW_BYTES)

    @staticmethod
    def create(path: str) -> None:
        with open(path, "xb") as file:
            file.truncate(MOST_NAMES * ROW_BYTES)  # a page that is never used takes no room

    def clear(self, lane: int) -> None:
        """The process of that lane is gone, and with it its requests."""
        with self._locked():
            for at in range(RUNNING + lane * COUNT.size, MOST_NAMES * ROW_BYTES, ROW_BYTES):
                COUNT.pack_into(self._map, at, 0)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        if self._file is None:
            yield
            return
        fcntl.flock(self._file, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(self._file, fcntl.LOCK_UN)

    def admit(self, key: ClientKey) -> Allowance:
        """A request of `key` has arrived. Raises RateLimited. What is returned must be ended, once."""
        limits, row = key.limits, key.row * ROW_BYTES
        if limits is None:
            return UNLIMITED
        now = self._clock()
        with self._locked():
            requests = self._level(row + REQUESTS, limits.requests_per_minute, now)
            tokens = self._level(row + TOKENS, limits.tokens_per_minute, now)
            running = sum(COUNTS.unpack_from(self._map, row + RUNNING)) if limits.concurrency is not None else 0
            refusal = _refusal(limits, requests + 1, tokens, running)
            if refusal is not None:
                raise RateLimited(*refusal, own=_headers(limits, requests, tokens))
            if limits.requests_per_minute is not None:
                requests += 1
                BUCKET.pack_into(self._map, row + REQUESTS, requests, now)
            self._add_running(row, 1)
        return Allowance(self, limits, row, (requests, tokens))

    def _level(self, at: int, most: int | None, now: float) -> float:
        """How full a bucket is now."""
        if most is None:
            return 0.0
        level, then = BUCKET.unpack_from(self._map, at)
        return float(max(0.0, level - max(0.0, now - then) * most / MINUTE_S))

    def _add_running(self, row: int, change: int) -> None:
        at = row + RUNNING + self._lane * COUNT.size
        (count,) = COUNT.unpack_from(self._map, at)
        COUNT.pack_into(self._map, at, max(0, count + change))

    def charge(self, row: int, limits: KeyLimits, estimate: float) -> Levels:
        """Put the estimate of a prompt into the bucket of tokens. Raises RateLimited if there is no room for it."""
        most = limits.tokens_per_minute
        assert most is not None, "asked only of keys that have this limit"
        now = self._clock()
        with self._locked():
            requests = self._level(row + REQUESTS, limits.requests_per_minute, now)
            tokens = self._level(row + TOKENS, most, now)
            if (wanted := tokens + min(estimate, most)) > most:
                raise RateLimited(*_reached("tokens", wanted, most), own=_headers(limits, requests, tokens))
            BUCKET.pack_into(self._map, row + TOKENS, tokens + estimate, now)
        return requests, tokens + estimate

    def end(self, row: int, limits: KeyLimits, more_tokens: float) -> None:
        """A request is over. more_tokens: what it took beyond what was put in; below 0 if it took less."""
        with self._locked():
            self._add_running(row, -1)
            if (most := limits.tokens_per_minute) is not None and more_tokens:
                now = self._clock()
                tokens = self._level(row + TOKENS, most, now)
                BUCKET.pack_into(self._map, row + TOKENS, max(0.0, tokens + more_tokens), now)


class Allowance:
    """A request that was let in. limits: None if there are none. levels: how full the buckets are with it."""

    __slots__ = ("_charged", "_levels", "_limits", "_row", "_shared")

    def __init__(self, shared: SharedLimits | None, limits: KeyLimits | None, row: int, levels: Levels) -> None:
        self._shared, self._limits, self._row, self._levels = shared, limits, row, levels
        self._charged = 0.0

    @property
    def headers(self) -> Headers:
        """What the answer tells of the limits."""
        return [] if self._limits is None else _headers(self._limits, *self._levels)

    def charge(self, estimate: float) -> None:
        """The prompt is known. estimate: of its tokens. Raises RateLimited."""
        if self._shared is not None and self._limits is not None and self._limits.tokens_per_minute is not None:
            self._levels = self._shared.charge(self._row, self._limits, estimate)
            self._charged = estimate

    def end(self, outcome: Outcome) -> None:
        """The request is over."""
        if self._shared is not None and self._limits is not None:
            self._shared.end(self._row, self._limits, _taken(outcome, self._charged) - self._charged)


UNLIMITED = Allowance(None, None, 0, (0.0, 0.0))


def _taken(outcome: Outcome, estimate: float) -> float:
    """The tokens that a request has taken. What an engine did not do is not counted; what it did and did not tell, as
    when the client left, counts as estimated."""
    prompt: float | None = outcome.prompt_tokens
    if prompt is None:
        prompt = 0.0 if outcome.ending in (Ending.REJECTED, Ending.ENGINE_LOST, Ending.GATEWAY_FAULT) else estimate
    return prompt + (outcome.output_tokens or 0)


Refusal = tuple[str, str, float]
"""The message, what is limited, and when to come back, seconds."""


def _refusal(limits: KeyLimits, requests: float, tokens: float, running: int) -> Refusal | None:
    """Why a request cannot be admitted. requests: how full their bucket would be. tokens: how full theirs is."""
    if limits.concurrency is not None and running >= limits.concurrency:
        return f"Your limit of {limits.concurrency} requests at a time is reached.", "concurrency", BUSY_RETRY_S
    if limits.requests_per_minute is not None and requests > limits.requests_per_minute:
        return _reached("requests", requests, limits.requests_per_minute)
    if limits.tokens_per_minute is not None and tokens >= limits.tokens_per_minute:
        return _reached("tokens", tokens, limits.tokens_per_minute)
    return None


def _reached(kind: str, level: float, most: int) -> Refusal:
    """level: how full the bucket would be."""
    return f"Your limit of {most} {kind} a minute is reached.", kind, (level - most) * MINUTE_S / most


def _headers(limits: KeyLimits, requests: float, tokens: float) -> Headers:
    """The headers by which OpenAI tells of limits. requests, tokens: how full the buckets are."""
    headers = []
    buckets = (b"requests", limits.requests_per_minute, requests), (b"tokens", limits.tokens_per_minute, tokens)
    for name, most, level in buckets:
        if most is not None:
            headers.append((b"x-ratelimit-limit-" + name, b"%d" % most))
            headers.append((b"x-ratelimit-remaining-" + name, b"%d" % max(0, most - level)))
            headers.append((b"x-ratelimit-reset-" + name, b"%dms" % round(level * MINUTE_S / most * 1000)))
    return headers
