"""What it costs to compute once more what another engine holds: the part of V that all engines share.

    price = H min(20, 2 mean(nw + hu nu))

H: how much of the traffic repeats, a running mean of the longest hit's share of the prompt. The copy displaces what
will have to be computed again, and that is the dearer the more requests wait for their prefill then; twice the mean
over the engines, because a busy one delays also those who come while it catches up. Requests that decode do not count:
were the price that of all in flight, prompts that all engines should hold would be herded onto few.

Of nu unstreamed requests in flight nobody sees which still wait. hu = min(1/2, 4 f), f a running mean of what decoding
leaves of their latency; near saturation the model takes part of the queue for decoding, hence the factor and the bound.
"""

from __future__ import annotations

from collections.abc import Sequence

from router.saved_state import SavedFields, SavedState
from router.types import Candidate

GAIN = 0.01  # of both running means
REPEATED_START, QUEUED_START = 0.3, 0.5
MOST_CONGESTION = 20.0
MOST_HIDDEN, HIDDEN_FACTOR = 0.5, 4.0


class Duplication:
    """Learns H and f."""

    def __init__(self) -> None:
        self._repeated = REPEATED_START
        self._queued = QUEUED_START

    def price(self, candidates: Sequence[Candidate]) -> float:
        """Of a second of prefill, seconds. `candidates` is not empty."""
        hidden = min(MOST_HIDDEN, HIDDEN_FACTOR * self._queued)
        waiting = sum([view.waiting + hidden * view.unstreamed for view, _ in candidates])
        return self._repeated * min(MOST_CONGESTION, 2.0 * waiting / len(candidates))

    def dispatched(self, longest_share: float) -> None:
        """A request was placed. longest_share: of its prompt, the longest hit that any engine offered, 0 to 1."""
        self._repeated += GAIN * (longest_share - self._repeated)

    def answered(self, decode_ms: float, latency_ms: float) -> None:
        """An unstreamed request took so long, and should have decoded for so much of it."""
        queued = 1.0 - min(1.0, decode_ms / max(1.0, latency_ms))
        self._queued += GAIN * (queued - self._queued)

    def dump(self) -> SavedState:
        return {"repeated": self._repeated, "queued": self._queued}

    def load(self, state: SavedFields) -> None:
        """Raises SnapshotError, and changes nothing then."""
        found = [state.number(key, low=0.0, high=1.0) for key in ("repeated", "queued")]
        self._repeated, self._queued = found

    def describe(self) -> dict[str, float]:
        return {"repeated": round(self._repeated, 4), "queued": round(self._queued, 4)}
