"""The limits on what a client may do before its key is looked at. They are no options: none of them needs to differ."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """What a client may do before anybody knows who it is."""

    connections: int
    """So many are open at a time. With more, one is closed that waits for its client (`Connections.longest_wait`)."""
    head_bytes: int = 65_536
    """Bytes of a head; so many may also come without any of a body, as trailers or extensions of chunks."""
    head_lines: int = 128
    head_s: float = 30.0
    """From the first byte of a head to its last."""
    body_silence_s: float = 30.0
    """The longest pause inside a body."""
    body_bytes_per_s: float = 1024.0
    """A body must come as fast as this on average, once it has taken `body_silence_s`."""
    pipelined: int = 16
    """Requests that may wait behind the one that is being answered."""
    linger_s: float = 5.0
    """What comes after an early answer is read and dropped for so long,"""
    linger_bytes: int = 1 << 26
    """and up to so many bytes; the same of what comes behind bytes that are no HTTP."""

    @property
    def look_s(self) -> float:
        """How often a request that is not complete is looked at."""
        return min(self.head_s, self.body_silence_s) / 4
