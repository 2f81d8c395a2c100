"""How slow each engine is against the fleet: s_i, 1 on average.

    s_i = (measured + 3 pred) / (expected + 3 pred)     sums decayed by .95 a sample; 3 pred: three samples "as usual"
    c_i = exp(soft(f log s_i, .2))                      what decisions use: exactly 1 within about +-20 %, so that
                                                        noise between equal engines decides nothing
    f = exp(-idle / 60 s)                               idle: since the engine's last sample

A sample more than twice as slow or fast as the engine is known to be counts as far as the one before it was so too: a
single hiccup (a first inference, say) decides little, a lasting change counts in full from its second sample. What is
known fades while an engine gets no requests: else one that was wrongly, or only for a while, found slow would never
again get one to show otherwise.

Every 8 samples all s_i are divided by their mean: the common speed belongs to the latency model.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from router.saved_state import SavedFields, SavedState
from router.types import EngineId

DECAY = 0.95
START_MS = 20.0
USUAL_SAMPLES = 3.0
LOW, HIGH = 0.05, 20.0
DEAD_BAND = 0.2
MOST_SURPRISE = 2.0
FADE_S = 60.0
NORMALISE_PERIOD = 8


@dataclass(slots=True)
class _Sums:
    measured_ms: float = START_MS
    expected_ms: float = START_MS
    slowness: float = 1.0
    log: float = 0.0  # of `slowness`
    last_s: float = 0.0
    last_ratio: float = 1.0

    def put(self, slowness: float) -> None:
        self.slowness = min(HIGH, max(LOW, slowness))
        self.log = math.log(self.slowness)

    def factor(self, now: float) -> float:
        log = self.log * math.exp((self.last_s - now) / FADE_S)
        return math.exp(math.copysign(max(0.0, abs(log) - DEAD_BAND), log))


class EngineSpeed:
    """One entry for every engine that gave a sample, until it is forgotten."""

    def __init__(self) -> None:
        self._sums: dict[EngineId, _Sums] = {}
        self._samples = 0

    def predict_one(self, engine: EngineId) -> float:
        """s_i: measured over usual time; 1 for an engine never seen."""
        sums = self._sums.get(engine)
        return sums.slowness if sums else 1.0

    def factor(self, engine: EngineId, now: float) -> float:
        """c_i, s_i faded and through the dead band."""
        sums = self._sums.get(engine)
        if sums is None or -DEAD_BAND <= sums.log <= DEAD_BAND:
            return 1.0
        return sums.factor(now)

    def stalled(self, engine: EngineId, silent_ms: float, expected_ms: float) -> float:
        """The slowness that a silence of silent_ms, where expected_ms were expected, would make true."""
        sums = self._sums.get(engine) or _Sums()
        return (sums.measured_ms + silent_ms) / (sums.expected_ms + expected_ms)

    def learn_one(self, engine: EngineId, measured_ms: float, expected_ms: float, now: float) -> None:
        """measured_ms: as it took; expected_ms: as an engine of slowness 1 would have taken."""
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
        """Times as ages at `now`."""
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
        """saved_s: on the present clock. names: the engines there are, by the names they had. Raises SnapshotError."""
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
