"""Live traffic as a trace: one JSON line for every request that an engine worked on, with lengths, times and hashed
blocks, and no text. `leafcutter simulate --trace` and `leafcutter bench` replay it.

A line has the fields of Mooncake's traces (FAST'25) first, then more:

    timestamp       arrival at the gateway, ms since the first request of the recording
    input_length, output_length     tokens, as the engine counts them; of a request that did not end well and so
                    without a count: the prompt as the router estimated it, and the tokens that had come
    hash_ids        one whole number (below 2^53) for each full block of the prompt: equal ids, equal text up to there
    block_tokens    tokens in one such block, a fraction for text (blocks are cut by bytes): input_length covers
                    len(hash_ids) blocks and less than one more
    cached_tokens   found in the engine's cache; null if it did not tell
    max_tokens, stream, route, model          of the request
    session         hashed, or null
    ending          ok; cancelled: the client left; timeout; engine_lost; rejected: the engine broke off with an error
    engine, policy, ttft_ms, latency_ms       what became of it, times from its arrival; latency_ms until it ended, well
                    or not; ttft_ms is null for what was not streamed

A replay gives a request that did not end well no end of its own: it is as long as max_tokens and the cache allow, and
is left when it ended in the recording, latency_ms after its arrival. So it holds an engine as long as it did.

Ids and sessions are keyed by a salt that is drawn for each recording and stored nowhere: hashing a guessed text does
not tell whether it was asked. Left out: requests that reached no engine or that the engine refused, for which nothing
was computed; those that asked for several answers at once; and answers of which the engine told no lengths.

Lines stand in the order of arrival, unless a request outlasts HELD later ones. A thread of its own writes them; the
data path only puts what is needed into a queue, and where that is full, the line is dropped and counted. A file that
reaches `max_bytes` becomes FILE.1, and the FILE.1 before it FILE.2; so does, at the start, one that is there already.
A gzip file is complete only once it was rotated or the gateway has ended in order.
"""

from __future__ import annotations

import gzip
import json
import logging
import os
import queue
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import blake2b
from heapq import heappop, heappush
from typing import IO, NamedTuple, cast

from router.errors import ConfigError
from router.types import BlockKey, Decision, Ending, Outcome

log = logging.getLogger("leafcutter.record")

QUEUE = 1024  # ended requests that wait for the thread
HELD, HELD_BYTES = 8192, 32 << 20  # lines that wait for an earlier request to end
FLUSH_S, CLOSE_S = 1.0, 30.0
MODEL_CHARS = 256


class EndedRequest(NamedTuple):
    """What a line needs of one request. Times in seconds on the gateway's clock."""

    arrival_s: float
    done_s: float
    first_token_s: float | None
    prompt_tokens: int
    output_tokens: int
    cached_tokens: int | None
    keys: tuple[BlockKey, ...]
    block_units: int
    units: int
    """Of one block and of the whole prompt."""
    max_tokens: int | None
    stream: bool
    route: str
    model: str
    session: str | None
    ending: Ending
    engine: str
    policy: str


class TraceWriter:
    """Writes the trace at `path` while `running()`. salt: at least 16 random bytes. held: lines that may wait for an
    earlier request to end.

    Every request that arrives gets a number from `arrived`, and must be `ended` with it. Raises ConfigError if the file
    cannot be opened.
    """

    def __init__(self, path: str, *, max_bytes: int, files: int, salt: bytes, held: int = HELD) -> None:
        self._path, self._max_bytes, self._files, self._salt, self._held = path, max_bytes, files, salt, held
        self._queue: queue.Queue[tuple[int, EndedRequest | None] | None] = queue.Queue(QUEUE)
        self._arrivals = 0
        self._origin_s: float | None = None
        self._broken = False
        self.counts = {"written": 0, "left_out": 0, "dropped": 0, "lost": 0}
        """Requests by what became of them. dropped: the queue was full; lost: the file could not be written."""
        try:
            self._raw, self._file = self._begin()
        except OSError as error:
            raise ConfigError("record", path, f"a file that can be written ({error.strerror})") from None

    # --- the data path ------------------------------------------------------------------------------------------

    def arrived(self, now: float) -> int:
        """The next request's number."""
        if self._origin_s is None:
            self._origin_s = now
        self._arrivals += 1
        return self._arrivals

    def ended(self, number: int, arrival_s: float, decision: Decision | None, outcome: Outcome | None) -> None:
        """The request is over; without a decision or an outcome it reached no engine."""
        done = summarize(arrival_s, decision, outcome) if decision and outcome else None
        try:
            self._queue.put_nowait((number, done))
            self.counts["left_out"] += done is None
        except queue.Full:
            self.counts["dropped"] += 1

    @contextmanager
    def running(self) -> Iterator[None]:
        """The thread writes as long as this context; at its end the file is complete."""
        thread = threading.Thread(target=self._work, name="record", daemon=True)
        thread.start()
        try:
            yield
        finally:
            try:
                self._queue.put(None, timeout=CLOSE_S)
            except queue.Full:
                log.error("the recording to %s stands still and is left incomplete", self._path)
            thread.join(CLOSE_S)

    # --- the thread ---------------------------------------------------------------------------------------------

    def _work(self) -> None:
        held: list[tuple[int, bytes]] = []
        held_bytes, due = 0, 1
        while (item := self._next()) is not None:
            number, done = item
            line = b"" if done is None else self._line(done)
            heappush(held, (number, line))
            held_bytes += len(line)
            while held and (held[0][0] <= due or len(held) > self._held or held_bytes > HELD_BYTES):
                number, line = heappop(held)
                held_bytes -= len(line)
                due = max(due, number + 1)
                self._write(line)
        for _, line in sorted(held):
            self._write(line)
        self._close()

    def _next(self) -> tuple[int, EndedRequest | None] | None:
        while True:
            try:
                return self._queue.get(timeout=FLUSH_S)
            except queue.Empty:
                self._flush()

    def _line(self, done: EndedRequest) -> bytes:
        assert self._origin_s is not None, "it has arrived"
        first_s = done.first_token_s
        fields = {
            "timestamp": round((done.arrival_s - self._origin_s) * 1e3, 3),
            "input_length": done.prompt_tokens,
            "output_length": done.output_tokens,
            "hash_ids": [self._hash(key.to_bytes(8, "little")) >> 11 for key in done.keys],
            "block_tokens": done.prompt_tokens
            * done.block_units
            * 1000
            // max(1, done.units)
            / 1e3,  # exact for tokens
            "cached_tokens": done.cached_tokens,
            "max_tokens": done.max_tokens,
            "stream": done.stream,
            "route": done.route,
            "model": done.model,
            "session": done.session and f"{self._hash(done.session.encode('utf-8', 'surrogatepass')):016x}",
            "ending": done.ending.value,
            "engine": done.engine,
            "policy": done.policy,
            "ttft_ms": None if first_s is None else round((first_s - done.arrival_s) * 1e3, 3),
            "latency_ms": round((done.done_s - done.arrival_s) * 1e3, 3),
        }
        return json.dumps(fields, separators=(",", ":")).encode() + b"\n"

    def _hash(self, content: bytes) -> int:
        return int.from_bytes(blake2b(content, digest_size=8, key=self._salt).digest(), "little")

    # --- the file -----------------------------------------------------------------------------------------------

    def _write(self, line: bytes) -> None:
        if not line:
            return
        try:
            if not self._broken:
                self._file.write(line)
        except OSError as error:
            self._fail(error)
        self.counts["lost" if self._broken else "written"] += 1
        if not self._broken and self._raw.tell() >= self._max_bytes:
            self._rotate()

    def _rotate(self) -> None:
        self._close()
        try:
            self._raw, self._file = self._begin()
        except OSError as error:
            self._fail(error)

    def _begin(self) -> tuple[IO[bytes], IO[bytes]]:
        """A new file, the ones before it renamed: (as it lies on the disk, what lines are written to)."""
        if os.path.exists(self._path):
            for number in range(self._files - 1, 0, -1):
                if os.path.exists(f"{self._path}.{number}"):
                    os.replace(f"{self._path}.{number}", f"{self._path}.{number + 1}")
            os.replace(self._path, f"{self._path}.1")
        raw = open(self._path, "xb")  # noqa: SIM115  # closed by the thread
        if not self._path.endswith(".gz"):
            return raw, raw
        return raw, cast(IO[bytes], gzip.GzipFile(filename="", fileobj=raw, mode="wb", mtime=0))

    def _flush(self) -> None:
        try:
            if not self._broken:
                self._file.flush()
        except OSError as error:
            self._fail(error)

    def _close(self) -> None:
        try:
            self._file.close()
        except OSError as error:
            self._fail(error)
        finally:
            self._raw.close()

    def _fail(self, error: OSError) -> None:
        if not self._broken:
            log.error("the recording to %s has ended: %s", self._path, error)
        self._broken = True


def summarize(arrival_s: float, decision: Decision, outcome: Outcome) -> EndedRequest | None:
    """What the trace tells of a request; None if it is to be left out."""
    request, prompt, ending = decision.request, decision.request.prompt, outcome.ending
    prompt_tokens, output_tokens = outcome.prompt_tokens or 0, outcome.output_tokens or 0
    if ending is Ending.OK:
        told = prompt_tokens and output_tokens
    else:
        told = output_tokens or ending is not Ending.REJECTED
        prompt_tokens = prompt_tokens or max(1, round(decision.prompt_tokens))
    if not told or request.choices != 1:
        return None
    return EndedRequest(
        arrival_s,
        outcome.done_s,
        outcome.first_token_s,
        prompt_tokens,
        output_tokens,
        outcome.cached_tokens,
        prompt.keys,
        prompt.block_units,
        prompt.units,
        request.max_tokens,
        request.stream,
        request.route,
        request.model[:MODEL_CHARS],
        request.session and request.session[:MODEL_CHARS],
        ending,
        decision.engine,
        decision.policy,
    )
