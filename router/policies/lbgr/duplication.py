"""The price of computing again what another engine holds: the factor of the term V (`cost`) that all engines share.

    price = H min(20, 2 mean(nw + hu nu)),   hu = min(1/2, 4 f)          seconds for each second of prefill

H: how much of the traffic repeats, a running mean of the longest hit's share of the prompt; nw: streamed requests in
flight on an engine that wait for their first token; nu: unstreamed ones in flight; hu: the share of these that is taken
to wait; f: a running mean of the share of their latency that is not decoding. The mean is over all engines.

A second copy of a prefix displaces other blocks, which will have to be computed again. That costs more the more
requests wait for their prefill at that time. It counts twice, because a busy engine also delays the requests that come
while it catches up. Requests that decode do not count: with a price by all requests in flight, prompts that every
engine should hold would be herded onto a few engines.

Nobody sees which unstreamed requests still wait, so their share is estimated by f. Near saturation the model takes part
of the queue for decoding and f is too small. Hence the factor 4, and the bound of 1/2.
"""

from __future__ import annotations

from collections.abc import Sequence

from router.saved_state import SavedFields, SavedState
from router.types import Candidate

GAIN = 0.01  # weight of a new sample in both running means
REPEATED_START, QUEUED_START = 0.3, 0.5
MOST_CONGESTION = 20.0
MOST_HIDDEN, HIDDEN_FACTOR = 0.5, 4.0


class Duplication:
    """Learns H (`repeated`) and f (`queued`)."""

    def __init__(self) -> None:
        self._repeated = REPEATED_START
        self._queued = QUEUED_START

    def price(self, candidates: Sequence[Candidate]) -> float:
        """The price of a second of prefill, seconds. `candidates` is not empty."""
        hidden = min(MOST_HIDDEN, HIDDEN_FACTOR * self._queued)
        waiting = sum([view.waiting + hidden * view.unstreamed for view, _ in candidates])
        return self._repeated * min(MOST_CONGESTION, 2.0 * waiting / len(candidates))

    def dispatched(self, longest_share: float) -> None:
        """A request was placed. longest_share: the longest hit on any engine as a share of the prompt, 0 to 1."""
        self._repeated += GAIN * (longest_share - self._repeated)

    def answered(self, decode_ms: float, latency_ms: float) -> None:
        """An unstreamed request took latency_ms, of which decode_ms should have been decoding."""
        queued = 1.0 - min(1.0, decode_ms / max(1.0, latency_ms))
        self._queued += GAIN * (queued - self._queued)

    def dump(self) -> SavedState:
        return {"repeated": self._repeated, "queued": self._queued}

    def load(self, state: SavedFields) -> None:
        """Raises SnapshotError, in which case nothing is changed."""
        found = [state.number(key, low=0.0, high=1.0) for key in ("repeated", "queued")]
        self._repeated, self._queued = found

    def describe(self) -> dict[str, float]:
        return {"repeated": round(self._repeated, 4), "queued": round(self._queued, 4)}
