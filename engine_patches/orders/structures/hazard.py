"""Hazards of reuse by class and age, learned online, and what they say a cached block is worth: its Gittins index.

Time is counted in epochs. A block is at risk while it is cached and no request uses it, and while it is evicted and
still remembered. It has a class and an age, the number of epochs since its last use. For each class and 12 bins of age,
one cell of the table counts events H (reuses) and exposure X (block-epochs at risk). Both decay, so old
traffic is forgotten. Blocks that are never used again count through their exposure, so nothing waits until they are
evicted (right censoring).

hazard(c, b) = H/X per epoch, shrunk towards level(c) x shape(b), because few events say little about one cell. From the
hazards follows

    index(c, b) = max over x >= b of  P(reuse in bins b..x) / E[epochs held in bins b..x],

the best rate of hits for the space taken that keeping the block until some age can give (Gittins 1979, "Bandit
processes and dynamic allocation indices", for a job that may end in any bin). Blocks are evicted by `level`, which is
the index in steps of a factor 1.5: within one step the estimate cannot tell two blocks apart, but their age can.
"""

import math
from itertools import accumulate

HORIZON = 64  # epochs; older blocks count as in the last bin and are in no statistics
STARTS = (0, 1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48)  # first age of each bin, epochs
BINS = len(STARTS)
ENDS = (*STARTS[1:], HORIZON)
WIDTHS = tuple(end - start for start, end in zip(STARTS, ENDS, strict=True))
MIDDLES = tuple(start + width / 2 for start, width in zip(STARTS, WIDTHS, strict=True))
BIN_OF_AGE = tuple(bin_ for bin_, width in enumerate(WIDTHS) for _ in range(width))
# The ages of each bin as a set of bits, one for each place. The place of an age is HORIZON - age, and 0 for all ages
# from HORIZON on: the older, the lower.
PLACES = tuple(
    sum(1 << HORIZON - age for age in range(start, end + (end == HORIZON)))
    for start, end in zip(STARTS, ENDS, strict=True)
)

DECAY = 0.99  # factor of H and X at the end of each epoch
SHRINK = 4.0  # exposure that level(c) x shape(b) is worth in a cell, in epoch lengths
SLOW = 4  # epochs
QUANTUM = 1.5  # ratio of the indices of neighbouring levels
_SCALE = 1 / math.log(QUANTUM)


class HazardTable:
    """H and X of every class c and bin b, in flat lists. `epoch_length` is in accesses, `capacity` in blocks.

    Class c is kind c % `kinds` of group c // `kinds`. The levels of the classes beyond the first group, of which there
    are many with few samples each, are computed anew every SLOW epochs only, in turn.

    `at_risk[e % HORIZON][group][kind]` is the number of blocks of a class at risk whose last use was in epoch e, and
    `events[c * BINS + b]` is H. The owner keeps both up to date and calls `advance` at the end of each epoch, which
    puts new lists in the place of those of the epoch HORIZON ago.
    """

    def __init__(self, kinds: int, epoch_length: int, capacity: int, groups: int = 1) -> None:
        self.epoch = 0
        self._kinds, self._groups = kinds, groups
        self._classes = classes = kinds * groups
        self._levels: list[list[int] | None] = [None] * classes  # of the classes that were asked for
        self._steps: list[list[tuple[int, int]] | None] = [None] * classes
        self.at_risk = [self._nobody() for _ in range(HORIZON)]
        self.events = [0.0] * (classes * BINS)
        self._exposure = [0.0] * (classes * BINS)
        self._epoch_length = epoch_length
        self._capacity = capacity
        self._pool()

    def advance(self) -> None:
        """End the epoch: add up exposure and begin the next epoch with `at_risk` 0. The levels are new afterwards."""
        self._add_exposure()
        self.epoch += 1
        self.at_risk[self.epoch % HORIZON] = self._nobody()
        self._pool()
        self.events[:] = [DECAY * value for value in self.events]
        self._exposure = [DECAY * value for value in self._exposure]

    def _nobody(self) -> list[list[int]]:
        return [[0] * self._kinds for _ in range(self._groups)]

    def _add_exposure(self) -> None:
        slot, exposure = self.epoch % HORIZON, self._exposure
        by_age = [*self.at_risk[slot::-1], *self.at_risk[:slot:-1]]
        for group in range(self._groups):
            columns = zip(*[kinds[group] for kinds in by_age], strict=True)
            for c, counts in enumerate(columns, group * self._kinds):
                if any(counts):
                    younger = [*accumulate(counts)]  # by age: blocks of at most that age
                    # Those of age 0 came during this epoch, so on average they were at risk for half of it.
                    counted = 0.5 * counts[0]
                    for cell, end in enumerate(ENDS, c * BINS):
                        exposure[cell] += younger[end - 1] - counted
                        counted = younger[end - 1]

    def levels(self, c: int) -> list[int]:
        """Return floor(log_1.5(index(c, b))) for each bin b."""
        found = self._levels[c]
        if found is None:
            found = self._levels[c] = [math.floor(math.log(index) * _SCALE) for index in gittins(self.hazards(c))]
        return found

    def steps(self, c: int) -> list[tuple[int, int]]:
        """Return the levels that the class has, the lowest first, each with the places (`PLACES`) of its ages."""
        found = self._steps[c]
        if found is None:
            places = dict[int, int]()
            for level, of_bin in zip(self.levels(c), PLACES, strict=True):
                places[level] = places.get(level, 0) | of_bin
            found = self._steps[c] = sorted(places.items())
        return found

    def _pool(self) -> None:
        """Take the table as it stands for the levels from now on, and compute what all classes are shrunk towards."""
        events, exposure, length = self.events.copy(), self._exposure, self._epoch_length
        for c in range(self._classes):
            if c < self._kinds or (c + self.epoch) % SLOW == 0:
                self._levels[c] = self._steps[c] = None
        self._h, self._x = events, exposure
        by_bin = [(sum(events[b::BINS]), sum(exposure[b::BINS])) for b in range(BINS)]
        rate = self._rate = (sum(h for h, _ in by_bin) + 1) / (sum(x for _, x in by_bin) + self._capacity)
        weight = 0.05 * length
        self._shape = [
            (h + weight * rate * 16 / (middle + 8)) / (x + weight)
            for (h, x), middle in zip(by_bin, MIDDLES, strict=True)
        ]
        self._pooled = [(h + rate) / (x + 1) for h, x in by_bin]

    def hazards(self, c: int) -> list[float]:
        """Return hazard(c, b) for each bin b, in reuses per block and epoch. All are > 0, as they are shrunk."""
        rate, strength = self._rate, SHRINK * self._epoch_length
        h, x = self._h[c * BINS : (c + 1) * BINS], self._x[c * BINS : (c + 1) * BINS]
        expected = sum(a * b for a, b in zip(x, self._pooled, strict=True))
        prior = self._epoch_length * rate
        level = strength * (sum(h) + prior) / (expected + prior)
        return [(hb + level * gb) / (xb + strength) for hb, xb, gb in zip(h, x, self._shape, strict=True)]


def gittins(hazards: list[float]) -> list[float]:
    """Return the Gittins index of each bin, in reuses per epoch held. `hazards` has one value > 0 for each bin.

    Bins are pooled from the last to the first. A stretch of bins is extended as long as the stretch behind it pays
    better than it does itself; where it ends is where the maximum over x lies.
    """
    indices = [0.0] * BINS
    stretches: list[tuple[float, float, float]] = []  # rate, probability of a reuse within, expected epochs held
    for bin_ in range(BINS - 1, -1, -1):
        hazard = hazards[bin_]
        reused = -math.expm1(-hazard * WIDTHS[bin_])
        rate, held = hazard, reused / hazard
        while stretches and stretches[-1][0] > rate:
            _, more, longer = stretches.pop()
            held += (1 - reused) * longer
            reused += (1 - reused) * more
            rate = reused / held
        stretches.append((rate, reused, held))
        indices[bin_] = rate
    return indices
