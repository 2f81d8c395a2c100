"""Readers of traces: both formats, gzip, streaming, and each way a file can be wrong."""

import gzip
import itertools
import json
import pickle
import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import pytest

from router.errors import TraceError
from router.sim.trace import LONGEST_LINE_BYTES, Request, TraceFile


class Write(Protocol):
    def __call__(self, content: str | bytes, name: str = ...) -> str: ...


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes a trace and gives its path; text or bytes."""

    def write(content: str | bytes, name: str = "trace.txt") -> str:
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return str(path)

    return write


def read(path: str, limit: int | None = None) -> list[Request]:
    return list(TraceFile(path, limit).open(capacity=1))


def refuse(path: str) -> TraceError:
    with pytest.raises(TraceError) as caught:
        read(path)
    assert str(caught.value).startswith(f"trace {path}")
    return caught.value


def test_text(write: Write) -> None:
    path = write("\n1 2 3\r\n\n  1\t2  -4\n7 7\n")
    assert [request.blocks for request in read(path)] == [[1, 2, 3], [1, 2, -4], [7, 7]]
    assert read(path)[0] == Request([1, 2, 3])


def test_words(write: Write) -> None:
    path = write("ff01 é 12\n12\n")
    assert [request.blocks for request in read(path)] == [["ff01", "é", "12"], ["12"]]


def test_a_number_too_long_for_a_number_is_a_word(write: Write) -> None:
    digits = "9" * 5000
    assert read(write(digits + " 1\n"))[0].blocks == [digits, "1"]


def test_mooncake(write: Write) -> None:
    lines = [
        {"timestamp": 1500, "input_length": 1000, "output_length": 7, "hash_ids": [0, 5]},
        {"hash_ids": []},
    ]
    path = write("\n".join(map(json.dumps, lines)) + "\n\n")
    assert read(path) == [Request([0, 5], 1.5, 1000, 7), Request([])]


def test_what_a_recording_adds(write: Write) -> None:
    told = {"hash_ids": [1], "max_tokens": 9, "stream": False, "route": "/v1/x", "session": "me", "ending": "ok"}
    lines = [told, {**told, "ending": "cancelled", "latency_ms": 2500}, {**told, "max_tokens": None, "session": None}]
    whole, left, plain = read(write("".join(json.dumps(line) + "\n" for line in lines)))
    assert whole == Request([1], max_tokens=9, stream=False, route="/v1/x", session="me")
    assert left == replace(whole, abandon_after_s=2.5)
    assert plain == replace(whole, max_tokens=None, session=None)


@pytest.mark.parametrize("content", ["1 2\n3\n", '{"hash_ids": [1, 2]}\n{"hash_ids": [3]}\n'])
def test_gzip_whatever_its_name(write: Write, content: str) -> None:
    path = write(gzip.compress(content.encode()), "packed")
    assert [request.blocks for request in read(path)] == [[1, 2], [3]]


def test_limit(write: Write) -> None:
    path = write("1\n2\n3\nbroken\n")
    assert [request.blocks for request in read(path, limit=3)] == [[1], [2], [3]]


def test_progress_ends_near_the_end(write: Write) -> None:
    parts: list[float] = []
    for _ in TraceFile(write("1 2 3\n" * 5000)).open(1, parts.append):
        pass
    assert parts == sorted(parts)
    assert len(parts) == 20
    assert parts[0] < 0.5
    assert 0.9 < parts[-1] <= 1


@pytest.mark.parametrize(
    ("content", "line", "found"),
    [
        ("1 2\n3 x 4\n", 2, "'x'"),
        ("1\n\n\x002\n", 3, "no text"),
        (b"\x80\x04\x95\xff\xfe\n", 1, "no text"),
        ('{"hash_ids": [1]}\n1 2\n', 2, "'1 2'"),
        ('{"hash_ids": [1]}\n{"hash_ids": [2]\n', 2, "hash_ids"),
        ('{"hash_ids": [1]}\n[1]\n', 2, "'[1]'"),
        ('{"timestamp": 3}\n', 1, "no hash_ids"),
        ('{"hash_ids": "1 2"}\n', 1, "hash_ids ="),
        ('{"hash_ids": [1, "2"]}\n', 1, "hash_ids ="),
        ('{"hash_ids": [true]}\n', 1, "hash_ids ="),
        ('{"hash_ids": [1], "timestamp": "now"}\n', 1, "timestamp ="),
        ('{"hash_ids": [1], "timestamp": NaN}\n', 1, "timestamp ="),
        ('{"hash_ids": [1], "input_length": 1.5}\n', 1, "input_length ="),
        ('{"hash_ids": [1], "output_length": -1}\n', 1, "output_length ="),
        ('{"hash_ids": [1], "ending": "timeout"}\n', 1, "no latency_ms"),
        ('{"hash_ids": [1], "ending": 3}\n', 1, "ending ="),
        ('{"hash_ids": [1], "stream": 1}\n', 1, "stream ="),
        ('{"hash_ids": [1], "session": 7}\n', 1, "session ="),
        ('{"hash_ids": ' + "[" * 100_000 + "\n", 1, "..."),
    ],
)
def test_malformed(write: Write, content: str | bytes, line: int, found: str) -> None:
    error = refuse(write(content))
    assert error.line == line
    assert found in error.found
    assert f"line {line}: found" in str(error)
    assert "expected" in str(error)


@pytest.mark.parametrize("content", ["", "\n \n", gzip.compress(b"")])
def test_no_request(write: Write, content: str | bytes) -> None:
    assert refuse(write(content)).expected == "at least one request"


def test_truncated_gzip(write: Write) -> None:
    lines = "".join(f"{number}\n" for number in range(100_000))
    error = refuse(write(gzip.compress(lines.encode())[:-5000]))
    assert error.line is not None
    assert error.line > 1000
    assert "gzip" in error.found


def test_damaged_gzip(write: Write) -> None:
    packed = bytearray(gzip.compress(b"1 2\n" * 1000))
    packed[15:] = b"\xff" * len(packed[15:])
    assert "gzip" in refuse(write(bytes(packed))).found


def test_an_endless_line_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "zeros.gz"
    with gzip.open(path, "wb", compresslevel=1) as file:
        for _ in range(LONGEST_LINE_BYTES >> 20):
            file.write(b"1 " * (1 << 19))
    assert "bytes" in refuse(str(path)).found


def test_missing_file(tmp_path: Path) -> None:
    assert refuse(str(tmp_path / "none.txt")).line is None


def test_lazy(write: Write) -> None:
    """What stands behind the lines that were asked for is not read."""
    path = write("1 2\n" * 3 + "broken\n")
    assert len(list(itertools.islice(TraceFile(path).open(1), 3))) == 3


def peak_bytes(path: str) -> int:
    tracemalloc.start()
    try:
        for _ in TraceFile(path).open(1):
            pass
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_memory_does_not_grow_with_the_trace(write: Write) -> None:
    line = " ".join(map(str, range(1000, 1100))) + "\n"
    short, long = (write(gzip.compress((line * lines).encode()), f"{lines}.gz") for lines in (200, 4000))
    assert peak_bytes(long) < 1.5 * peak_bytes(short)


def test_the_error_passes_between_processes() -> None:
    error = pickle.loads(pickle.dumps(TraceError("a.txt", 3, "x", "y")))
    assert str(error) == "trace a.txt, line 3: found x; expected y"
    assert (error.file, error.line) == ("a.txt", 3)
