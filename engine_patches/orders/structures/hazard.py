"""Hazards of reuse by class and age, learned online, and what they say a cached block is worth: its Gittins index.

Time is counted in epochs. A block at risk (cached and in no request's use, or evicted and still remembered) has a
class and an age, the epochs since its last use. For each of CLASSES classes and 12 bins of age the table counts
events H (reuses) and exposure X (block-epochs at risk). Both fade, so old traffic is forgotten. Blocks that are never
used again count through their exposure, so nothing waits for them to be evicted (right censoring).

hazard(c, b) = H/X per epoch, shrunk towards level(c) x shape(b): few events say little about one cell. From these,

    index(c, b) = max over x >= b of  P(reuse in bins b..x) / E[epochs held in bins b..x],

the best rate of hits for the space taken that keeping the block until some age can give (Gittins 1979, "Bandit
processes and dynamic allocation indices", for a job that may end in any bin). Blocks are evicted by `level`, the index
in steps of a factor 1.5: within a step the estimate does not tell two blocks apart, and age does.
"""

import math

CLASSES = 16
HORIZON = 64  # epochs; older blocks are in the last bin and in no statistics
STARTS = (0, 1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48)
BINS = len(STARTS)
ENDS = (*STARTS[1:], HORIZON)
WIDTHS = tuple(end - start for start, end in zip(STARTS, ENDS, strict=True))
BIN_OF_AGE = tuple(bin_ for bin_, width in enumerate(WIDTHS) for _ in range(width))

DECAY = 0.99  # a epoch, of H and X
SHRINK = 4.0  # epoch lengths of exposure that the class and age means are worth in a cell
QUANTUM = 1.5


class Hazards:
    """`length`: accesses in an epoch; `capacity`: blocks of the cache.

    `alive[c * HORIZON + e % HORIZON]`: blocks of class c at risk whose last use was in epoch e; `events[c * BINS + b]`:
    reuses. Both are kept by the owner, who calls `advance` at the end of each epoch.
    """

    def __init__(self, length: int, capacity: int) -> None:
        self.epoch = 0
        self.alive = [0] * (CLASSES * HORIZON)
        self.events = [0.0] * (CLASSES * BINS)
        self._exposure = [0.0] * (CLASSES * BINS)
        self._length = length
        self._capacity = capacity

    def advance(self) -> list[int]:
        """Ends the epoch: exposure is added up, the next epoch's `alive` is 0. Gives the new levels, [c * BINS + b]."""
        self._add_exposure()
        self.epoch += 1
        for start in range(0, CLASSES * HORIZON, HORIZON):
            self.alive[start + self.epoch % HORIZON] = 0
        levels = self.levels()
        self.events[:] = [DECAY * value for value in self.events]
        self._exposure = [DECAY * value for value in self._exposure]
        return levels

    def _add_exposure(self) -> None:
        slot = self.epoch % HORIZON
        for c in range(CLASSES):
            ring = self.alive[c * HORIZON : (c + 1) * HORIZON]
            if not any(ring):
                continue
            # Those of age 0 came during the epoch: half of it at risk, on average.
            by_age = [0.5 * ring[slot], *ring[:slot][::-1], *ring[:slot:-1]]
            for bin_ in range(BINS):
                self._exposure[c * BINS + bin_] += sum(by_age[STARTS[bin_] : ENDS[bin_]])

    def levels(self) -> list[int]:
        """floor(log_1.5 index) of every class and bin."""
        scale = 1 / math.log(QUANTUM)
        found = []
        hazards = self.hazards()
        for c in range(CLASSES):
            indices = gittins(hazards[c * BINS : (c + 1) * BINS])
            found += [math.floor(math.log(index) * scale) for index in indices]
        return found

    def hazards(self) -> list[float]:
        """Reuses per block and epoch of every class and bin, all > 0: shrunk as the module says."""
        events, exposure, length = self.events, self._exposure, self._length
        by_bin = [(sum(events[b::BINS]), sum(exposure[b::BINS])) for b in range(BINS)]
        rate = (sum(h for h, _ in by_bin) + 1) / (sum(x for _, x in by_bin) + self._capacity)
        middles = [start + width / 2 for start, width in zip(STARTS, WIDTHS, strict=True)]
        weight = 0.05 * length
        shape = [
            (h + weight * rate * 16 / (middle + 8)) / (x + weight)
            for (h, x), middle in zip(by_bin, middles, strict=True)
        ]
        pooled = [(h + rate) / (x + 1) for h, x in by_bin]
        strength = SHRINK * length
        found = []
        for c in range(0, CLASSES * BINS, BINS):
            h, x = events[c : c + BINS], exposure[c : c + BINS]
            expected = sum(a * b for a, b in zip(x, pooled, strict=True))
            level = (sum(h) + length * rate) / (expected + length * rate)
            found += [(hb + strength * level * gb) / (xb + strength) for hb, xb, gb in zip(h, x, shape, strict=True)]
        return found


def gittins(hazards: list[float]) -> list[float]:
    """The index of each bin, in reuses per epoch held. `hazards` > 0, one a bin.

    Bins are pooled from the last to the first: a stretch is extended while what follows it pays better than it does
    itself, which is where the maximum over x lies.
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
