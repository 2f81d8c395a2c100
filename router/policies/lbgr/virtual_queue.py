"""The queue of prompts that an engine has yet to compute, as far as unstreamed requests let it be known.

They show no first token, so their queue is virtual: it grows by a request's uncached tokens at dispatch, drains at the
learned speed, and is cut by evidence: engines compute first come first served, so whatever was dispatched before a
request that shows a first token or completes has been computed.
"""

from __future__ import annotations

import math
from collections import deque


class VirtualQueue:
    """One engine's virtual queue; at most one entry for each unstreamed request in flight there."""

    def __init__(self) -> None:
        self._entries: deque[tuple[int, float]] = deque()  # (booking serial, tokens left), oldest first
        self._tokens = 0.0
        self._at_s = float("-inf")

    def ahead(self, now: float, tokens_per_s: float) -> tuple[int, float]:
        """(requests, tokens) left at `now`. The count goes with the tokens: exact when nothing or all is drained."""
        if not self._entries:
            return 0, 0.0
        left = self._tokens - max(0.0, now - self._at_s) * tokens_per_s
        if left <= 0.0:
            return 0, 0.0
        return math.ceil(len(self._entries) * left / self._tokens), left

    def add(self, serial: int, tokens: float, now: float, tokens_per_s: float) -> None:
        self._drain(now, tokens_per_s)
        self._entries.append((serial, tokens))
        self._tokens += tokens

    def reach(self, serial: int, now: float, tokens_per_s: float) -> None:
        """Evidence at `now` that the prompts up to this booking have been computed."""
        self._drain(now, tokens_per_s)
        while self._entries and self._entries[0][0] <= serial:
            self._tokens -= self._entries.popleft()[1]
        self._settle()

    def drop(self, serial: int) -> None:
        """The request is gone and says nothing of the others."""
        kept = deque(entry for entry in self._entries if entry[0] != serial)
        self._tokens = sum(tokens for _, tokens in kept)
        self._entries = kept

    def _drain(self, now: float, tokens_per_s: float) -> None:
        budget = max(0.0, now - self._at_s) * tokens_per_s if self._entries else 0.0
        self._at_s = max(self._at_s, now)
        while self._entries and budget >= self._entries[0][1]:
            tokens = self._entries.popleft()[1]
            budget -= tokens
            self._tokens -= tokens
        if self._entries and budget > 0.0:
            serial, tokens = self._entries[0]
            self._entries[0] = (serial, tokens - budget)
            self._tokens -= budget
        self._settle()

    def _settle(self) -> None:
        if not self._entries:
            self._tokens = 0.0  # a sum of floats drifts; an empty queue is exactly zero
