"""How long a request takes: eight coefficients shared by all engines, learned from whatever a request lets us see.

    prefill = a * requests + b * miss + al * hit + at * spread   of one step, or of a request and its queue
    decode  = output * (g0 + g1 * others + g2 * context) + gp * beside   others: requests beside it; context: theirs

spread = miss (hit + miss / 2): attention, each computed token looking back at all before it. It is what makes a long
prompt cost more than its tokens. beside: prefill of others, as predicted, whose first token came while this answer was
decoded. Steps are shared, so an answer waits only for a part gp of it. How much of it is to be expected is learned as
a share of the time, phi = beside / decoding, and decoding is stretched by it:

    stretch = 1 / (1 - gp * phi)

A streamed request teaches the two lines apart (`learn_prefill`, `learn_decode`), an unstreamed one their sum
(`learn_whole`); one regression takes both, so that mixed traffic shares what it learns. The prior fixes only the
*ratios* of the coefficients: `_Pace`, measured over prior-predicted time, moves it to the hardware at hand within a few
samples, and weights come from the prior too (relative errors count, whatever the speed; no estimate weighs its own
evidence). Where answers show how long they decode, its shape is learned freely: its prior fades within some tens of
samples. The prior of prefill stays, for a busy engine tells little: its steps are full whatever the prompt whose first
token ends them. Left alone, the regression takes the length of a step for a cost of each request and none of its
tokens. Of an unstreamed request queue, prefill and decoding are one number: there the whole prior stays but for two
thirds of its strength, or a queue passes for slow decoding and the fleet collapses near saturation.

UNITS HERE ONLY: milliseconds, and thousands of tokens for miss, hit and context; output in tokens. The prior, its
strengths and the weights are stated in them.
"""

from __future__ import annotations

from typing import NamedTuple

from router.learners.least_squares import NonNegativeLeastSquares
from router.saved_state import SavedFields, SavedState


class Coefficients(NamedTuple):
    """a: ms a request; b, al: ms a thousand uncached, cached tokens; g0: ms an output token; g1: more for each
    other request; g2: more for each thousand tokens of context; at: ms a million pairs of tokens; gp: ms a ms of
    others' prefill."""

    a: float
    b: float
    al: float
    g0: float
    g1: float
    g2: float
    at: float
    gp: float

    def per_token_s(self) -> Coefficients:
        """The same in seconds and tokens."""
        a, b, al, g0, g1, g2, at, gp = self
        return Coefficients(a / 1e3, b / 1e6, al / 1e6, g0 / 1e3, g1 / 1e3, g2 / 1e6, at / 1e9, gp)


# at: of an 8B model (32 layers, width 4,096), where attention to 30,500 tokens costs as much as all else of a token.
PRIOR = Coefficients(10.0, 100.0, 1.0, 20.0, 0.2, 0.1, 3.3, 0.7)
STRENGTH = Coefficients(1.0, 1.0, 1.0, 5.0, 500.0, 500.0, 10.0, 2000.0)
LEAST_OUTPUT = 4  # tokens; shorter answers say nothing about decoding
FULL_OUTPUT = 64  # tokens from which on an answer has full weight
HALF = 0.5  # a streamed request gives two samples
FADE, FADED = 0.9, 0.001  # the strength of decoding's prior: by so much an answer that shows it, down to
FADE_WHOLE, FADED_WHOLE = 0.95, 0.3  # of all the prior, by whole requests: no further, a queue looks like decoding
BESIDE_DECAY = 0.995  # of what phi is learned from, with each answer of full weight
MOST_BESIDE = 0.9  # gp * phi: decoding is stretched to 10 times at most


class _Pace:
    """Measured over expected time: ratio of sums over about the last 20 samples."""

    def __init__(self, start_ms: float) -> None:
        self._measured_ms = self._expected_ms = start_ms

    def learn_one(self, measured_ms: float, expected_ms: float) -> None:
        self._measured_ms = 0.95 * self._measured_ms + measured_ms
        self._expected_ms = 0.95 * self._expected_ms + expected_ms

    def dump(self) -> list[float]:
        return [self._measured_ms, self._expected_ms]

    def load(self, sums: list[float]) -> None:
        self._measured_ms, self._expected_ms = sums

    @property
    def ratio(self) -> float:
        return self._measured_ms / self._expected_ms


class LatencyModel:
    """The regression above. Samples must be free of the engine's own speed (divided by its slowness)."""

    def __init__(self) -> None:
        self._model = NonNegativeLeastSquares(PRIOR, STRENGTH)
        self._prefill_pace, self._decode_pace = _Pace(20.0), _Pace(20.0)
        self._prefill_trust = self._decode_trust = 1.0  # in the prior
        self._beside_ms, self._decoding_ms = 0.0, 1.0  # decayed sums
        self.coefficients = PRIOR
        self.per_token_s = PRIOR.per_token_s()
        self.tokens_per_s = 1.0 / self.per_token_s.b
        """Uncached tokens computed in a second."""

        self.stretch = 1.0
        """Of decoding, by the prefill of others that is to be expected beside it; 1 to 10."""

    @property
    def samples(self) -> int:
        return self._model.samples

    def prefill_ms(self, requests: float, miss: float, hit: float, spread: float) -> float:
        return _prefill_ms(self.coefficients, requests, miss, hit, spread)

    def decode_ms(self, output: float, others: float, context: float) -> float:
        c = self.coefficients
        return output * (c.g0 + c.g1 * others + c.g2 * context)

    def learn_prefill(self, requests: float, miss: float, hit: float, spread: float, y_ms: float) -> None:
        """One engine step that gave `requests` first tokens after y_ms of work."""
        expected_ms = _prefill_ms(PRIOR, requests, miss, hit, spread)
        self._prefill_pace.learn_one(y_ms, expected_ms)
        self._learn((requests, miss, hit, 0.0, 0.0, 0.0, spread, 0.0), y_ms, _relative(expected_ms), HALF)

    def learn_decode(self, output: int, others: float, context: float, y_ms: float, beside_ms: float) -> None:
        """One answer of `output` tokens that took y_ms after its first, beside so much prefill of others."""
        if output < LEAST_OUTPUT:
            return
        token_ms, beside = y_ms / (output - 1), beside_ms / (output - 1)
        alone_ms = max(0.0, token_ms - self.coefficients.gp * beside)
        self._decode_pace.learn_one(alone_ms, PRIOR.g0 + PRIOR.g1 * others + PRIOR.g2 * context)
        self._decode_trust = max(FADED, self._decode_trust * FADE)
        weight = min(output, FULL_OUTPUT) / FULL_OUTPUT
        self._beside_ms += (1 - BESIDE_DECAY) * weight * (beside_ms - self._beside_ms)
        self._decoding_ms += (1 - BESIDE_DECAY) * weight * (y_ms - self._decoding_ms)
        self._learn((0.0, 0.0, 0.0, 1.0, others, context, 0.0, beside), token_ms, weight, HALF)

    def learn_whole(
        self,
        requests: float,
        miss: float,
        hit: float,
        spread: float,
        output: int,
        others: float,
        context: float,
        y_ms: float,
    ) -> None:
        """One unstreamed request, the queue before it counted in `requests` and `miss`."""
        prefill_ms = _prefill_ms(PRIOR, requests, miss, hit, spread)
        token_ms = PRIOR.g0 + PRIOR.g1 * others + PRIOR.g2 * context
        expected_ms = prefill_ms + output * token_ms
        ratio = y_ms / expected_ms  # cannot be told apart by one sample: the same for both
        self._prefill_pace.learn_one(ratio * prefill_ms, prefill_ms)
        self._decode_pace.learn_one(ratio * token_ms, token_ms)
        self._prefill_trust = min(self._prefill_trust, max(FADED_WHOLE, self._prefill_trust * FADE_WHOLE))
        self._decode_trust = min(self._decode_trust, max(FADED_WHOLE, self._decode_trust * FADE_WHOLE))
        x = (requests, miss, hit, float(output), output * others, output * context, spread, 0.0)
        self._learn(x, y_ms, _relative(expected_ms), 1.0)

    def _learn(self, x: tuple[float, ...], y_ms: float, weight: float, share: float) -> None:
        prefill, decode = self._prefill_pace.ratio, self._decode_pace.ratio
        self._model.prior[:] = [p * r for p, r in zip(PRIOR, _each(prefill, decode), strict=True)]
        trust = _each(self._prefill_trust, self._decode_trust)
        self._model.strength[:] = [s * t for s, t in zip(STRENGTH, trust, strict=True)]
        self._model.learn_one(x, y_ms, weight, share)
        self._publish()

    def dump(self) -> SavedState:
        return {
            "coefficients": list(Coefficients._fields),
            "regression": self._model.dump(),
            "prefill_pace_ms": self._prefill_pace.dump(),
            "decode_pace_ms": self._decode_pace.dump(),
            "trust": [self._prefill_trust, self._decode_trust],
            "beside_ms": [self._beside_ms, self._decoding_ms],
        }

    def load(self, state: SavedFields) -> None:
        """Raises SnapshotError, also if it was saved of other coefficients."""
        state.same("coefficients", list(Coefficients._fields))
        paces = [state.numbers(key, 2, low=1e-300) for key in ("prefill_pace_ms", "decode_pace_ms")]
        trust = state.numbers("trust", 2, low=0.0)
        beside = state.numbers("beside_ms", 2, low=0.0)
        self._model.load(state.fields("regression"))
        self._prefill_pace.load(paces[0])
        self._decode_pace.load(paces[1])
        self._prefill_trust, self._decode_trust = trust
        self._beside_ms, self._decoding_ms = beside
        self._publish()

    def _publish(self) -> None:
        self.coefficients = Coefficients(*self._model.weights)
        self.per_token_s = self.coefficients.per_token_s()
        self.tokens_per_s = 1.0 / max(1e-9, self.per_token_s.b)
        share = self.coefficients.gp * self._beside_ms / max(1.0, self._decoding_ms)
        self.stretch = 1.0 / (1.0 - min(MOST_BESIDE, share))


def _prefill_ms(c: Coefficients, requests: float, miss: float, hit: float, spread: float) -> float:
    return c.a * requests + c.b * miss + c.al * hit + c.at * spread


def _each(prefill: float, decode: float) -> Coefficients:
    """One number for each coefficient of the two lines; gp is a share already, and never known freely."""
    return Coefficients(prefill, prefill, prefill, decode, decode, decode, prefill, 1.0)


def _relative(expected_ms: float) -> float:
    """Weight of a sample by its prior-predicted length: relative errors count, below 10 ms absolute ones."""
    return 1000.0 / (expected_ms * expected_ms + 100.0)
