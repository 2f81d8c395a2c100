"""How slow each engine is against the fleet: its slowness s_i, which is 1 on average.

    s_i = (measured + 3 pred) / (expected + 3 pred)
    c_i = exp(soft(f log s_i, .2))                      soft(x, d) = sign(x) max(0, |x| - d)
    f   = exp(-idle / 60 s)

measured, expected: sums of measured and of predicted times, decayed by .95 with each sample; pred: the prediction of
the last sample, so that 3 pred counts as three samples of usual speed; idle: the time since the engine's last sample.

Decisions use c_i. It is exactly 1 while s_i is within about 20 % of 1, so that noise between equal engines decides
nothing. What is known fades while an engine gets no requests. Otherwise an engine that was found slow by mistake, or
that was slow for a while, would never again get a request that shows its speed.

A sample that is more than twice as slow or as fast as the known s_i counts only as far as the sample before it was so
too. So a single hiccup (a first inference, for example) decides little, and a lasting change counts in full from its
second sample.

Every 8 samples all s_i are divided by their mean, because the speed that engines have in common belongs to the latency
model.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from router.saved_state import SavedFields, SavedState
from router.types import EngineId

DECAY = 0.95
START_MS = 20.0  # both sums before any sample
USUAL_SAMPLES = 3.0
LOW, HIGH = 0.05, 20.0  # bounds of s_i
DEAD_BAND = 0.2
MOST_SURPRISE = 2.0  # factor on s_i from which a sample is doubted
FADE_S = 60.0
NORMALISE_PERIOD = 8  # samples


@dataclass(slots=True)
class _Sums:
    """What is known of one engine. last_s, last_ratio: the time of its last sample, and measured / predicted in it."""

    measured_ms: float = START_MS
    expected_ms: float = START_MS
    slowness: float = 1.0
    log: float = 0.0  # the logarithm of `slowness`
    last_s: float = 0.0
    last_ratio: float = 1.0

    def put(self, slowness: float) -> None:
        self.slowness = min(HIGH, max(LOW, slowness))
        self.log = math.log(self.slowness)

    def factor(self, now: float) -> float:
        log = self.log * math.exp((self.last_s - now) / FADE_S)
        return math.exp(math.copysign(max(0.0, abs(log) - DEAD_BAND), log))


class EngineSpeed:
    """Keeps one entry for every engine that has given a sample, until the engine is forgotten."""

    def __init__(self) -> None:
        self._sums: dict[EngineId, _Sums] = {}
        self._samples = 0

    def predict_one(self, engine: EngineId) -> float:
        """s_i: measured time over predicted time; 1 for an engine without samples."""
        sums = self._sums.get(engine)
        return sums.slowness if sums else 1.0

    def factor(self, engine: EngineId, now: float) -> float:
        """c_i: s_i faded for the time that the engine was idle, and without the dead band."""
        sums = self._sums.get(engine)
        if sums is None or -DEAD_BAND <= sums.log <= DEAD_BAND:
            return 1.0
        return sums.factor(now)

    def stalled(self, engine: EngineId, silent_ms: float, expected_ms: float) -> float:
        """The slowness of an engine that has been silent for silent_ms where expected_ms were expected: as if its
        answer came now."""
        sums = self._sums.get(engine) or _Sums()
        return (sums.measured_ms + silent_ms) / (sums.expected_ms + expected_ms)

    def learn_one(self, engine: EngineId, measured_ms: float, expected_ms: float, now: float) -> None:
        """Learn from one sample. measured_ms: the time it took; expected_ms: the time that an engine of slowness 1
        would have taken."""
        sums = self._sums.setdefault(engine, _Sums())
        ratio = measured_ms / max(expected_ms, 1e-9)
        slowest, fastest = sums.slowness * MOST_SURPRISE, sums.slowness / MOST_SURPRISE
        measured_ms = expected_ms * min(max(slowest, sums.last_ratio), max(min(fastest, sums.last_ratio), ratio))
        sums.last_s, sums.last_ratio = now, ratio
        sums.measured_ms = DECAY * sums.measured_ms + measured_ms
        sums.expected_ms = DECAY * sums.expected_ms + expected_ms
        prior_ms = USUAL_SAMPLES * expected_ms
        sums.put((sums.measured_ms + prior_ms) / (sums.expected_ms + prior_ms))
        self._samples += 1
        if self._samples % NORMALISE_PERIOD == 0:
            self._normalise()

    def forget(self, engine: EngineId) -> None:
        self._sums.pop(engine, None)

    def dump(self, now: float) -> SavedState:
        """Times are saved as ages at `now`."""
        engines = {
            engine: {
                "measured_ms": sums.measured_ms,
                "expected_ms": sums.expected_ms,
                "slowness": sums.slowness,
                "idle_s": max(0.0, now - sums.last_s),
                "last_ratio": sums.last_ratio,
            }
            for engine, sums in self._sums.items()
        }
        return {"samples": self._samples, "engines": engines}

    def load(self, state: SavedFields, saved_s: float, names: Mapping[str, EngineId]) -> None:
        """saved_s: the time of the dump on the present clock. names: the present engines by the names that they had
        then. Raises SnapshotError."""
        samples, engines, found = state.integer("samples"), state.fields("engines"), {}
        for name in engines:
            saved = engines.fields(name)
            sums = _Sums(
                saved.number("measured_ms", low=0.0),
                saved.number("expected_ms", low=0.0),
                last_s=saved_s - saved.number("idle_s", low=0.0),
                last_ratio=saved.number("last_ratio", low=0.0),
            )
            sums.put(saved.number("slowness", low=LOW, high=HIGH))
            if name in names:
                found[names[name]] = sums
        self._sums, self._samples = found, samples

    def _normalise(self) -> None:
        mean = sum(sums.slowness for sums in self._sums.values()) / len(self._sums)
        for sums in self._sums.values():
            sums.put(sums.slowness / mean)
            sums.measured_ms /= mean
