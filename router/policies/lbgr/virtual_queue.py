"""The unstreamed prompts that an engine has yet to compute.

An unstreamed request shows no first token, so nobody sees when its prompt is computed. Its queue is therefore virtual.
It grows by the request's uncached tokens at dispatch, and drains at the learned speed. Evidence corrects it: engines
compute prompts in the order of their dispatch, so once a request shows a first token or completes, all prompts that
were dispatched before it have been computed.
"""

from __future__ import annotations

import math
from collections import deque


class VirtualQueue:
    """The virtual queue of one engine, with at most one entry for each unstreamed request in flight there."""

    def __init__(self) -> None:
        self._entries: deque[tuple[int, float]] = deque()  # (booking serial, tokens left), oldest first
        self._tokens = 0.0  # left in all entries
        self._at_s = float("-inf")  # the time for which the entries hold

    def ahead(self, now: float, tokens_per_s: float) -> tuple[int, float]:
        """(requests, tokens) that are left at `now`. The number of requests is estimated in proportion to the tokens,
        and is exact if nothing or everything has drained."""
        if not self._entries:
            return 0, 0.0
        left = self._tokens - max(0.0, now - self._at_s) * tokens_per_s
        if left <= 0.0:
            return 0, 0.0
        return math.ceil(len(self._entries) * left / self._tokens), left

    def add(self, serial: int, tokens: float, now: float, tokens_per_s: float) -> None:
        """An unstreamed request with this many uncached tokens is dispatched. serial: of its booking."""
        self._drain(now, tokens_per_s)
        self._entries.append((serial, tokens))
        self._tokens += tokens

    def reach(self, serial: int, now: float, tokens_per_s: float) -> None:
        """There is evidence at `now` that the prompts of all bookings up to this one have been computed."""
        self._drain(now, tokens_per_s)
        while self._entries and self._entries[0][0] <= serial:
            self._tokens -= self._entries.popleft()[1]
        self._settle()

    def drop(self, serial: int) -> None:
        """The request has ended without saying anything about the others."""
        kept = deque(entry for entry in self._entries if entry[0] != serial)
        self._tokens = sum(tokens for _, tokens in kept)
        self._entries = kept

    def _drain(self, now: float, tokens_per_s: float) -> None:
        """Remove what the engine can have computed until `now`, from the oldest entries on."""
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
            self._tokens = 0.0  # a running sum of floats drifts, but an empty queue has exactly 0 tokens
