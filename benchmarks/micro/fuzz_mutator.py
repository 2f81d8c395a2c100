"""The inputs of `fuzz`: what clients and engines send in earnest, and changes of it that nobody would."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence

HUGE = 1 << 12  # the most bytes that one change adds, but for the rare deep nesting
_NUMBER = re.compile(rb"-?\d+(?:\.\d+)?")
NUMBERS = (
    *(
        b"0",
        b"-1",
        b"1e400",
        b"NaN",
        b"Infinity",
        b"5e-324",
        b"1" + b"0" * 400,
        b"9223372036854775808",
        b"0.1",
        b"null",
    ),
    *(b"4294967296", b"18446744073709551616", b"-0", b"00", b"0x10", b"+1", b"ffffffffffffffff", b"true"),
)
TOKENS = (
    *(
        b"\r\n",
        b"\n\n",
        b"\r",
        b"\n",
        b"\0",
        b"\xff\xfe",
        b"\xed\xa0\x80",
        b"\xc3",
        b" ",
        b"\t",
        b":",
        b";",
        b",",
        b"=",
        b'"',
    ),
    *(b"{", b"}", b"[", b"]", b"{}", b"[]", b"null", b"\\ud800", b"\\u0000", b"data: ", b"[DONE]", b"\x80", b"\x90"),
    *(b"HTTP/1.1 ", b"HTTP/1.0", b"HTTP/2.0", b"HTTP/9.9", b"Transfer-Encoding: chunked\r\n", b"Content-Length: 5\r\n"),
    *(b"Upgrade: h2c\r\nConnection: Upgrade\r\n", b"Expect: 100-continue\r\n", b"Connection: close\r\n", b"0\r\n\r\n"),
    *(b"%00", b"%2e%2e", b"../", b"//", b"?", b"#", b"@", b"\xef\xbb\xbf", b"\xff\xff\xff\xff", b"\xc7\xff\xff"),
    *(b'"usage"', b'"choices"', b'"error"', b'"messages"', b'"index"', b'"delta"', b'"stream"', b'"content"'),
)


class Mutator:
    """Gives one input after the other, the same for the same seed."""

    def __init__(self, seeds: Sequence[bytes], rng: random.Random) -> None:
        self._seeds, self._rng = seeds, rng
        self._changes: tuple[Callable[[bytes], bytes], ...] = (
            self._flip,
            self._set,
            self._remove,
            self._repeat,
            self._insert,
            self._insert,
            self._replace,
            self._number,
            self._number,
            self._cut,
            self._graft,
            self._nest,
        )

    def next(self) -> bytes:
        data = self._rng.choice(self._seeds)
        for _ in range(self._rng.choice((0, 1, 1, 1, 2, 2, 3, 5, 8))):
            data = self._rng.choice(self._changes)(data)
        return data

    def _span(self, data: bytes) -> tuple[int, int]:
        begin = self._rng.randint(0, len(data))
        return begin, min(len(data), begin + self._rng.choice((1, 2, 4, 16, 64, 256)))

    def _flip(self, data: bytes) -> bytes:
        if not data:
            return data
        at = self._rng.randrange(len(data))
        return data[:at] + bytes((data[at] ^ 1 << self._rng.randrange(8),)) + data[at + 1 :]

    def _set(self, data: bytes) -> bytes:
        at = self._rng.randint(0, len(data))
        return data[:at] + bytes((self._rng.randrange(256),)) + data[at + 1 :]

    def _remove(self, data: bytes) -> bytes:
        begin, end = self._span(data)
        return data[:begin] + data[end:]

    def _repeat(self, data: bytes) -> bytes:
        begin, end = self._span(data)
        span = data[begin:end]
        times = self._rng.choice((1, 1, 2, 50))
        return data[:begin] + (span * times)[:HUGE] + data[begin:]

    def _insert(self, data: bytes) -> bytes:
        at = self._rng.randint(0, len(data))
        return data[:at] + self._rng.choice(TOKENS) + data[at:]

    def _replace(self, data: bytes) -> bytes:
        begin, end = self._span(data)
        return data[:begin] + self._rng.choice(TOKENS) + data[end:]

    def _number(self, data: bytes) -> bytes:
        found = list(_NUMBER.finditer(data[:HUGE]))
        if not found:
            return data
        place = self._rng.choice(found)
        return data[: place.start()] + self._rng.choice(NUMBERS) + data[place.end() :]

    def _cut(self, data: bytes) -> bytes:
        return data[: self._rng.randint(0, len(data))]

    def _graft(self, data: bytes) -> bytes:
        other = self._rng.choice(self._seeds)
        return data[: self._rng.randint(0, len(data))] + other[self._rng.randint(0, len(other)) :]

    def _nest(self, data: bytes) -> bytes:
        if self._rng.random() > 0.02:
            return data
        at = self._rng.randint(0, len(data))
        return data[:at] + self._rng.choice((b"[", b'{"a":', b"[[")) * self._rng.choice((100, 900, 20_000)) + data[at:]


def pieces(data: bytes, rng: random.Random) -> list[bytes]:
    """The data, cut at random into a few pieces."""
    cuts = sorted(rng.randint(0, len(data)) for _ in range(rng.choice((0, 0, 1, 2, 5))))
    return [data[begin:end] for begin, end in zip([0, *cuts], [*cuts, len(data)], strict=True) if begin < end]
