"""Traces of requests: files that are read as a stream and never held in memory.

There are two formats, told apart by the first line that is not blank. Files of both may be compressed by gzip.
- Text: one request a line, its block ids separated by blanks, the first block first. If the ids of the first request
  are whole numbers, those of all others must be (a word among numbers is a damaged line); otherwise ids are any words.
- JSON lines as Mooncake publishes them (FAST'25): `hash_ids` (whole numbers) and, where given, `timestamp` (ms),
  `input_length` and `output_length` (tokens); besides, what recordings of the gateway add (`gateway.trace_writer`), and
  of conversations `session` and `parent` (names), `stop` (how the answer ended, a number of `types.Stop`) and `tool`
  (the tool that it called).

Conversations of agents have a format of their own (`sim.agents`).

Equal ids are equal blocks. The parent of a block is the one before it on its line.
"""

from __future__ import annotations

import gzip
import json
import math
import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from typing import IO, Any, Protocol, cast

from router.errors import TraceError
from router.types import Ending, Stop

Block = int | str

# Longer than any request: a file without line ends is refused before it fills the memory.
LONGEST_LINE_BYTES = 64 << 20
_DIGITS = b"0123456789 \t\r\n"
_NUMBER = re.compile(r"-?[0-9]{1,40}")
# A reader reports how far it is once in so many requests.
REPORT_EVERY = 256


@dataclass(frozen=True, slots=True)
class Request:
    """One request of a trace. What the trace does not tell is None."""

    blocks: Sequence[Block]
    """The ids of the blocks of its prompt, the first block first."""
    arrival_s: float | None = None
    prompt_tokens: int | None = None
    output_tokens: int | None = None
    block_tokens: float | None = None
    """How many tokens an id stands for."""
    abandon_after_s: float | None = None
    """It ended this long after its arrival, before its answer was whole; None: it was answered."""
    max_tokens: int | None = None
    stream: bool | None = None
    route: str | None = None
    session: str | None = None
    stop: Stop | None = None
    """How its answer ended."""
    tool: str | None = None
    """The tool that its answer called."""
    parent: str | None = None
    """The session that started this one, of a sub-agent."""


class Trace(Protocol):
    """Requests that can be read as often as wanted, the same ones each time."""

    @property
    def label(self) -> str:
        """The name that a user gives it."""
        ...

    def open(self, capacity: int, report: Callable[[float], None] = ...) -> Iterator[Request]:
        """Give the requests one by one. `capacity` is that of the cache in blocks, for traces made against one.

        `report` is called now and then with the part that is done, 0 to 1. Raises TraceError while it is read.
        """
        ...


def ignore(_part: float) -> None:
    """The report of a run that nobody watches."""


def numbered_lines(label: str, raw: IO[bytes]) -> Iterator[tuple[int, bytes]]:
    """Give the lines of a file, unpacked, that are not blank, with their numbers from 1. `label` is its name in errors.

    Raises TraceError at a line that is too long and at damaged gzip data.
    """
    packed = raw.read(2) == b"\x1f\x8b"
    raw.seek(0)
    file = cast(IO[bytes], gzip.GzipFile(fileobj=raw)) if packed else raw
    number = 0
    try:
        for number, line in enumerate(iter(lambda: file.readline(LONGEST_LINE_BYTES), b""), start=1):
            if len(line) == LONGEST_LINE_BYTES and not line.endswith(b"\n"):
                raise TraceError(label, number, f"more than {len(line)} bytes", "a shorter line")
            if not line.isspace():
                yield number, line
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise TraceError(label, number + 1, f"damaged gzip data ({error})", "a complete gzip file") from None


@dataclass(frozen=True)
class TraceFile:
    """The trace in the file at the path `label`. With a `limit` only so many requests at its beginning are read."""

    label: str
    limit: int | None = None

    def open(self, capacity: int, report: Callable[[float], None] = ignore) -> Iterator[Request]:  # noqa: ARG002
        """Give the requests. Raises TraceError if the file cannot be read, is empty, or at a malformed line."""
        try:
            with open(self.label, "rb") as raw:
                size = max(1, raw.seek(0, 2))
                raw.seek(0)
                for count, request in enumerate(islice(self._requests(raw), self.limit)):
                    if count % REPORT_EVERY == 0:
                        report(max(raw.tell() / size, count / self.limit if self.limit else 0.0))
                    yield request
        except OSError as error:
            raise TraceError(self.label, None, error.strerror or str(error), "a readable file") from None

    def _requests(self, raw: IO[bytes]) -> Iterator[Request]:
        read = None
        for number, line in numbered_lines(self.label, raw):
            read = read or self._reader(number, line)
            yield read(number, line)
        if read is None:
            raise TraceError(self.label, None, "nothing", "at least one request")

    def _reader(self, number: int, line: bytes) -> Callable[[int, bytes], Request]:
        """Return the method that reads the lines of this file, judging by its first line."""
        if line.lstrip().startswith(b"{"):
            return self._read_json
        numbers = all(isinstance(block, int) for block in self._ids(number, line))
        return self._read_numbers if numbers else self._read_words

    def _read_numbers(self, number: int, line: bytes) -> Request:
        blocks = self._ids(number, line)
        for block in blocks:
            if isinstance(block, str):
                raise TraceError(
                    self.label, number, repr(block[:40]), "a block id that is a number, as in the first request"
                )
        return Request(blocks)

    def _read_words(self, number: int, line: bytes) -> Request:
        return Request(self._words(number, line))

    def _ids(self, number: int, line: bytes) -> list[Block]:
        if not line.translate(None, _DIGITS):  # Nearly every line goes this way.
            with suppress(ValueError):  # A number with more digits than Python converts is a word.
                return list(map(int, line.split()))
        return [int(word) if _NUMBER.fullmatch(word) else word for word in self._words(number, line)]

    def _words(self, number: int, line: bytes) -> list[str]:
        try:
            words = line.decode().split()
        except UnicodeDecodeError:
            words = []
        if not words or not all(map(str.isprintable, words)):
            raise TraceError(self.label, number, "bytes that are no text", "block ids separated by blanks")
        return words

    def _read_json(self, number: int, line: bytes) -> Request:
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError):  # not JSON, not even text, or nested without end
            raise TraceError(self.label, number, show(line), "a JSON object") from None
        if not isinstance(entry, dict):
            raise TraceError(self.label, number, show(line), "a JSON object")
        blocks = entry.get("hash_ids")
        if not isinstance(blocks, list) or not all(type(block) is int for block in blocks):
            found = "no hash_ids" if "hash_ids" not in entry else f"hash_ids = {show(blocks)}"
            raise TraceError(self.label, number, found, "hash_ids, a list of whole numbers")
        timestamp_ms = self._number(number, entry, "timestamp", (int, float))
        return Request(
            blocks,
            None if timestamp_ms is None else timestamp_ms / 1e3,
            self._number(number, entry, "input_length", (int,)),
            self._number(number, entry, "output_length", (int,)),
            self._number(number, entry, "block_tokens", (int, float)) or None,
            self._abandon_after_s(number, entry),
            self._number(number, entry, "max_tokens", (int,)) or None,
            self._value(number, entry, "stream", bool, "true or false"),
            self._value(number, entry, "route", str, "text"),
            self._value(number, entry, "session", str, "text"),
            self._stop(number, entry),
            self._value(number, entry, "tool", str, "text"),
            self._value(number, entry, "parent", str, "text"),
        )

    def _stop(self, number: int, entry: dict[str, Any]) -> Stop | None:
        value = entry.get("stop")
        if value is None:
            return None
        if type(value) is not int or value not in list(Stop):
            raise TraceError(
                self.label, number, f"stop = {show(value)}", "0 (unknown), 1 (tool call), 2 (end of turn) or 3 (length)"
            )
        return Stop(value)

    def _abandon_after_s(self, number: int, entry: dict[str, Any]) -> float | None:
        if self._value(number, entry, "ending", str, "text") in (None, Ending.OK):
            return None
        latency_ms = self._number(number, entry, "latency_ms", (int, float))
        if latency_ms is None:
            raise TraceError(self.label, number, "no latency_ms", "when the request ended that was not answered")
        return float(latency_ms / 1e3)

    def _value(self, number: int, entry: dict[str, Any], key: str, kind: type, words: str) -> Any:
        value = entry.get(key)
        if value is not None and type(value) is not kind:
            raise TraceError(self.label, number, f"{key} = {show(value)}", words)
        return value

    def _number(self, number: int, entry: dict[str, Any], key: str, kinds: tuple[type, ...]) -> Any:
        value = entry.get(key)
        if value is not None and not (type(value) in kinds and 0 <= value < math.inf):
            words = "a number" if float in kinds else "a whole number"
            raise TraceError(self.label, number, f"{key} = {show(value)}", f"{words} of at least 0")
        return value


def show(value: object) -> str:
    """Return what stands there, cut short enough for a message."""
    text = value.decode(errors="replace").strip() if isinstance(value, bytes) else json.dumps(value)
    return repr(text) if len(text) <= 40 else repr(text[:40]) + " ..."
