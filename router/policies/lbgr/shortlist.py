"""Which of many engines are worth weighing for a request, so that a decision among hundreds costs no more.

Whoever is best is so by a long hit or by little load, if engines are alike; where they are not, a fast one may be best
though it is loaded, hence a sample of all.
"""

from __future__ import annotations

from collections.abc import Sequence

BEST_HITS, LEAST_LOADED, SAMPLE = 24, 24, 16
MOST = BEST_HITS + LEAST_LOADED + SAMPLE
"""Up to so many candidates there is nothing to choose."""


def shortlist(hits: Sequence[float], loads: Sequence[int], chance: float) -> list[int]:
    """Places of at most MOST of more candidates: the longest hits, the least loaded, and a sample from all around.

    hits, loads: cached tokens and requests in flight, of each. It begins at a place drawn by `chance`, so that ties
    favour none: by its lower digits, as the upper ones split ties of costs (`pick`). O(M log M), about 0.2 us a
    candidate.
    """
    count = len(hits)
    start = int(chance * 2**20 % 1.0 * count)
    places = [*range(start, count), *range(start)]
    sample = places[:: count // SAMPLE][:SAMPLE]
    places.sort(key=loads.__getitem__)
    holders = [place for place in places if hits[place]]
    holders.sort(key=lambda place: -hits[place])
    return sorted({*holders[:BEST_HITS], *places[:LEAST_LOADED], *sample})
