"""Recording live traffic as a trace, which `leafcutter simulate --trace` and `leafcutter bench` replay.

The trace has one line of JSON for every request that an engine worked on. A line holds lengths, times and hashed
blocks, and no text. Its first four fields are those of Mooncake's traces (FAST'25):

    timestamp       the arrival at the gateway, in ms since the first request of the recording
    input_length, output_length     tokens as the engine counts them. A request that did not end well has no such
                    counts: then these are the router's estimate of the prompt, and the tokens that had arrived
    hash_ids        one integer (below 2^53) for each full block of the prompt; equal ids mean equal text up to there
    block_tokens    the tokens in such a block. It is a fraction for text, whose blocks are cut by bytes. input_length
                    covers len(hash_ids) blocks and less than one more
    cached_tokens   the tokens found in the engine's cache; null if the engine did not tell
    max_tokens, stream, route, model          as in the request
    session         a hash, or null
    stop            how the answer ended: 1 with a call of a tool, 2 with the end of the turn, 3 at its bound, 0 else
    ending          ok; cancelled: the client left; timeout; engine_lost; rejected: the engine broke off with an error
    engine, policy  those of the last try
    ttft_ms, latency_ms     from the arrival to the first token and to the end, good or bad; ttft_ms is null if the
                    answer was not streamed

How long the answer of a request that did not end well would have become is unknown. A replay lets it grow as far as
max_tokens and the cache allow, and abandons the request latency_ms after its arrival, when it ended in the recording.
So the request occupies an engine for as long as it did.

Block ids and sessions are hashed with a salt that is drawn for each recording and stored nowhere, so nobody can find
out by hashing a guessed text whether it was sent. Some requests are left out: those that reached no engine or that the
engine refused, for which nothing was computed; those that asked for several answers at once; and those whose engine
told no lengths.

Lines are in the order of arrival, except for a request that outlasts HELD later ones. A thread writes them. The data
path only puts what a line needs into a queue; if the queue is full, the line is dropped and counted. A file that
reaches `max_bytes` is renamed to FILE.1, and an older FILE.1 to FILE.2. The same happens at the start to a file that
exists already. A gzip file is complete only after it has been rotated or the gateway has stopped in order.
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
from typing import IO, NamedTuple, Protocol, cast

from router.errors import ConfigError
from router.gateway.regular_file import check_regular
from router.types import BlockKey, Ending, Outcome, Placement, Stop

log = logging.getLogger("leafcutter.record")

QUEUE = 1024  # at most so many ended requests wait for the thread
HELD, HELD_BYTES = 8192, 32 << 20  # at most so many lines, and bytes of them, wait for an earlier request to end
FLUSH_S, CLOSE_S = 1.0, 30.0
MODEL_CHARS = 256


class EndedRequest(NamedTuple):
    """What a line of the trace needs of one request. Times are seconds on the clock of the gateway."""

    arrival_s: float
    done_s: float
    first_token_s: float | None
    prompt_tokens: int
    output_tokens: int
    cached_tokens: int | None
    keys: tuple[BlockKey, ...]
    block_units: int
    """The length of one block of the prompt."""
    units: int
    """The length of the whole prompt."""
    max_tokens: int | None
    stream: bool
    route: str
    model: str
    session: str | None
    ending: Ending
    engine: str
    policy: str
    stop: Stop = Stop.UNKNOWN


class Recorder(Protocol):
    """All that the data path needs of a recording."""

    def arrived(self, now: float) -> int:
        """A request has arrived: return its number."""
        ...

    def ended(self, number: int, arrival_s: float, decision: Placement | None, outcome: Outcome | None) -> None:
        """The request is over. decision, outcome: those of its last try; None if it reached no engine."""
        ...


class TraceWriter:
    """Writes the trace at `path` while `running()`. Raises ConfigError if the file cannot be opened.

    Every request that arrives gets a number from `arrived`, and `ended` must be called with that number. max_bytes: the
    size at which a file is rotated. files: how many rotated files are kept. salt: at least 16 random bytes. held: how
    many lines may wait for an earlier request to end.
    """

    def __init__(self, path: str, *, max_bytes: int, files: int, salt: bytes, held: int = HELD) -> None:
        self._path, self._max_bytes, self._files, self._salt, self._held = path, max_bytes, files, salt, held
        self._queue: queue.Queue[tuple[int, EndedRequest | None] | None] = queue.Queue(QUEUE)
        self._arrivals = 0
        self._origin_s: float | None = None
        self._broken = False
        self.counts = {"written": 0, "left_out": 0, "dropped": 0, "lost": 0}
        """The number of requests by what was done with them. left_out: they have no line, see above. dropped: the queue
        was full. lost: the file could not be written."""
        check_regular("record", path)
        try:
            self._raw, self._file = self._begin()
        except OSError as error:
            raise ConfigError("record", path, f"a file that can be written ({error.strerror})") from None

    # --- the data path ------------------------------------------------------------------------------------------

    def arrived(self, now: float) -> int:
        """A request has arrived: return its number."""
        if self._origin_s is None:
            self._origin_s = now
        self._arrivals += 1
        return self._arrivals

    def ended(self, number: int, arrival_s: float, decision: Placement | None, outcome: Outcome | None) -> None:
        """The request is over. decision, outcome: those of its last try; None if it reached no engine."""
        self.add(number, summarize(arrival_s, decision, outcome) if decision and outcome else None)

    def add(self, number: int, request: EndedRequest | None) -> None:
        """The request of that number is over. None: it is left out."""
        try:
            self._queue.put_nowait((number, request))
            self.counts["left_out"] += request is None
        except queue.Full:
            self.counts["dropped"] += 1

    @contextmanager
    def running(self) -> Iterator[None]:
        """Run the thread that writes. At the end of this context, the file is complete."""
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
            number, request = item
            line = b"" if request is None else self._line(request)
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

    def _line(self, request: EndedRequest) -> bytes:
        assert self._origin_s is not None, "a request that ended has arrived"
        first_s = request.first_token_s
        # In whole thousandths: exact where units are tokens.
        block_tokens = request.prompt_tokens * request.block_units * 1000 // max(1, request.units) / 1e3
        fields = {
            "timestamp": round((request.arrival_s - self._origin_s) * 1e3, 3),
            "input_length": request.prompt_tokens,
            "output_length": request.output_tokens,
            "hash_ids": [self._hash(key.to_bytes(8, "little")) >> 11 for key in request.keys],
            "block_tokens": block_tokens,
            "cached_tokens": request.cached_tokens,
            "max_tokens": request.max_tokens,
            "stream": request.stream,
            "route": request.route,
            "model": request.model,
            "session": request.session and f"{self._hash(request.session.encode('utf-8', 'surrogatepass')):016x}",
            "stop": int(request.stop),
            "ending": request.ending.value,
            "engine": request.engine,
            "policy": request.policy,
            "ttft_ms": None if first_s is None else round((first_s - request.arrival_s) * 1e3, 3),
            "latency_ms": round((request.done_s - request.arrival_s) * 1e3, 3),
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
        """Rename the earlier files and open a new one. Return the file on the disk, and the file that lines are written
        to, which may compress them."""
        if os.path.exists(self._path):
            for number in range(self._files - 1, 0, -1):
                if os.path.exists(f"{self._path}.{number}"):
                    os.replace(f"{self._path}.{number}", f"{self._path}.{number + 1}")
            os.replace(self._path, f"{self._path}.1")
        raw = open(self._path, "xb")  # noqa: SIM115  # the thread closes it
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


def summarize(arrival_s: float, decision: Placement, outcome: Outcome) -> EndedRequest | None:
    """What the trace holds of a request; None if the request is left out."""
    request, prompt, ending = decision.request, decision.request.prompt, outcome.ending
    prompt_tokens, output_tokens = outcome.prompt_tokens or 0, outcome.output_tokens or 0
    if ending is Ending.OK:
        recorded = prompt_tokens and output_tokens
    else:
        recorded = output_tokens or ending is not Ending.REJECTED
        prompt_tokens = prompt_tokens or max(1, round(decision.prompt_tokens))
    if not recorded or request.choices != 1:
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
        outcome.stop,
    )
