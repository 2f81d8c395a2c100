"""Which of many engines are weighed for a request, so that a decision among hundreds costs no more than one among 64.

If engines are alike, the best one has a long hit or little load. If they are not, a fast engine may be best although it
has more load, so a sample of all engines is weighed as well.
"""

from __future__ import annotations

from collections.abc import Sequence

BEST_HITS, LEAST_LOADED, SAMPLE = 24, 24, 16
MOST_WEIGHED = BEST_HITS + LEAST_LOADED + SAMPLE
"""With at most this many candidates all are weighed, and no list is made."""


def shortlist(hits: Sequence[float], loads: Sequence[int], chance: float) -> list[int]:
    """Places of at most MOST_WEIGHED of more candidates, in rising order: the longest hits, the least loaded ones, and
    an even sample of all.

    hits, loads: the cached tokens and the requests in flight of each candidate. The candidates are sorted from a start
    that `chance` draws, so that ties favour none. Only the lower digits of `chance` are used for it, since the upper
    ones split ties of costs (`pick`). O(M log M) for M candidates, about 0.2 us for each.
    """
    count = len(hits)
    start = int(chance * 2**20 % 1.0 * count)
    places = [*range(start, count), *range(start)]
    sample = places[:: count // SAMPLE][:SAMPLE]
    places.sort(key=loads.__getitem__)
    holders = [place for place in places if hits[place]]
    holders.sort(key=lambda place: -hits[place])
    return sorted({*holders[:BEST_HITS], *places[:LEAST_LOADED], *sample})
