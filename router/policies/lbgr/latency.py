"""How long a request takes: eight coefficients, shared by all engines, learned from the times that requests show.

    prefill = a * requests + b * miss + al * hit + at * spread              spread = miss (hit + miss / 2)
    decode  = output * (g0 + g1 * others + g2 * context) + gp * beside
    stretch = 1 / (1 - gp * phi)

`prefill` is the time of one engine step that gives `requests` first tokens, or of one request with the queue before it.
miss, hit: uncached and cached tokens of those prompts. spread: attention, in which each computed token looks back at
all tokens before it; it makes a long prompt cost more than its tokens.

`decode` is the time of one answer of `output` tokens. others, context: the requests that run beside it, and their
tokens. beside: the predicted prefill time of other requests whose first token came while this answer was decoded.
Engine steps are shared, so an answer waits only for the part gp of that time. How much of it must be expected is
learned as phi, its share of the time of decoding, and `stretch` is the factor by which it prolongs decoding. phi
follows the last 200 answers or the last half minute, whichever is less, and fades while there are none: what a crowd
has shown says little of the quiet after it.

A streamed request teaches the two lines separately (`learn_prefill`, `learn_decode`), and an unstreamed request teaches
their sum (`learn_whole`). One regression takes both, so that mixed traffic shares what it learns.

The prior fixes only the *ratios* of the coefficients. Their scale comes from `_Pace`, measured over prior-predicted
time, which moves the prior to the present hardware within a few samples. The weights of samples are computed from the
prior too, so that relative errors count whatever the speed, and no estimate weighs its own evidence.

How long the prior keeps its strength depends on what a request shows:

- Streamed answers show how long they decode, so the prior of decoding fades within some tens of samples.
- The prior of prefill stays, because a busy engine shows little of it: its steps are full, whichever prompt's first
  token ends them. Without the prior, the regression would take the length of a step for a cost of each request and
  learn no cost of its tokens.
- An unstreamed request shows queue, prefill and decoding as one number. There the whole prior keeps a third of its
  strength. With less, a queue would look like slow decoding, and the fleet would collapse near saturation.

The units in this file are milliseconds, and thousands of tokens for miss, hit and context; output is in tokens. The
prior, its strengths and the weights are in these units.
"""

from __future__ import annotations

from typing import NamedTuple

from router.learners.least_squares import NonNegativeLeastSquares
from router.saved_state import SavedFields, SavedState


class Coefficients(NamedTuple):
    """The coefficients above.

    a: ms for each request; b, al: ms for a thousand uncached and cached tokens; g0: ms for an output token; g1: more ms
    for each other request; g2: more ms for a thousand tokens of context; at: ms for a million pairs of tokens; gp: ms
    for each ms of others' prefill.
    """

    a: float
    b: float
    al: float
    g0: float
    g1: float
    g2: float
    at: float
    gp: float

    def per_token_s(self) -> Coefficients:
        """The coefficients in seconds and tokens."""
        a, b, al, g0, g1, g2, at, gp = self
        return Coefficients(a / 1e3, b / 1e6, al / 1e6, g0 / 1e3, g1 / 1e3, g2 / 1e6, at / 1e9, gp)


# `at` is that of an 8B model (32 layers, width 4,096), where attention to 30,500 tokens costs as much as everything
# else that is computed for a token.
PRIOR = Coefficients(10.0, 100.0, 1.0, 20.0, 0.2, 0.1, 3.3, 0.7)
STRENGTH = Coefficients(1.0, 1.0, 1.0, 5.0, 500.0, 500.0, 10.0, 2000.0)
LEAST_OUTPUT = 4  # tokens; shorter answers teach nothing about decoding
FULL_OUTPUT = 64  # tokens from which on an answer has full weight
HALF = 0.5  # share of each sample of a streamed request, which gives two
FADE, FADED = 0.9, 0.001  # a streamed answer multiplies the strength of decoding's prior by FADE, down to FADED
FADE_WHOLE, FADED_WHOLE = 0.95, 0.3  # the same for an unstreamed request and the whole prior
BESIDE_DECAY = 0.995  # what an answer of full weight leaves of the older evidence for phi
BESIDE_HALF_S = 30.0  # and what so many seconds leave half of
MOST_SHARE = 10.0  # of one answer: several engines' worth of prefill cannot run beside it, but estimates can err
MOST_BESIDE = 0.9  # the largest gp * phi, so that decoding is stretched 10 times at most


class _Pace:
    """Measured over expected time: a ratio of sums over about the last 20 samples."""

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
    """The regression above. The caller divides each measured time by the slowness of its engine."""

    def __init__(self) -> None:
        self._model = NonNegativeLeastSquares(PRIOR, STRENGTH)
        self._prefill_pace, self._decode_pace = _Pace(20.0), _Pace(20.0)
        self._prefill_trust = self._decode_trust = 1.0  # factors on the strength of the prior
        self._phi = 0.0  # a mean over answers: of sums over time the long answers of a crowd would be the most
        self._phi_s = 0.0  # when it was last learned
        self._phi_weight = 0.0  # of the answers so far, at most those that BESIDE_DECAY remembers
        self.coefficients = PRIOR
        self.per_token_s = PRIOR.per_token_s()
        self.tokens_per_s = 1.0 / self.per_token_s.b
        """Uncached tokens that an engine of usual speed computes in a second."""

        self._share = 0.0  # gp * phi

    def stretch(self, now: float) -> float:
        """The factor on decoding for the prefill of others that must be expected beside it; 1 to 10."""
        return 1.0 / (1.0 - min(MOST_BESIDE, self._share) * _fade(now - self._phi_s))

    @property
    def samples(self) -> int:
        return self._model.samples

    def prefill_ms(self, requests: float, miss: float, hit: float, spread: float) -> float:
        return _prefill_ms(self.coefficients, requests, miss, hit, spread)

    def decode_ms(self, output: float, others: float, context: float) -> float:
        c = self.coefficients
        return output * (c.g0 + c.g1 * others + c.g2 * context)

    def learn_prefill(self, requests: float, miss: float, hit: float, spread: float, y_ms: float) -> None:
        """One engine step took y_ms and gave `requests` first tokens. miss, hit, spread: sums over their prompts."""
        expected_ms = _prefill_ms(PRIOR, requests, miss, hit, spread)
        self._prefill_pace.learn_one(y_ms, expected_ms)
        self._learn((requests, miss, hit, 0.0, 0.0, 0.0, spread, 0.0), y_ms, _relative(expected_ms), HALF)

    def learn_decode(
        self, output: int, others: float, context: float, y_ms: float, beside_ms: float, now: float
    ) -> None:
        """One answer of `output` tokens took y_ms after its first one, beside beside_ms of predicted prefill of
        others. now: seconds."""
        if output < LEAST_OUTPUT:
            return
        token_ms, beside = y_ms / (output - 1), beside_ms / (output - 1)
        alone_ms = max(0.0, token_ms - self.coefficients.gp * beside)
        self._decode_pace.learn_one(alone_ms, PRIOR.g0 + PRIOR.g1 * others + PRIOR.g2 * context)
        self._decode_trust = max(FADED, self._decode_trust * FADE)
        weight = min(output, FULL_OUTPUT) / FULL_OUTPUT
        self._phi_weight = min(1.0 / (1.0 - BESIDE_DECAY), self._phi_weight + weight)
        gain = 1.0 - (1.0 - weight / self._phi_weight) * _fade(now - self._phi_s)
        self._phi += gain * (min(MOST_SHARE, beside_ms / max(y_ms, 1.0)) - self._phi)
        self._phi_s = now
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
        """One unstreamed request took y_ms. `requests` and `miss` include the queue before it."""
        prefill_ms = _prefill_ms(PRIOR, requests, miss, hit, spread)
        token_ms = PRIOR.g0 + PRIOR.g1 * others + PRIOR.g2 * context
        expected_ms = prefill_ms + output * token_ms
        ratio = y_ms / expected_ms  # one sample cannot tell prefill and decoding apart, so both get the same ratio
        self._prefill_pace.learn_one(ratio * prefill_ms, prefill_ms)
        self._decode_pace.learn_one(ratio * token_ms, token_ms)
        self._prefill_trust = min(self._prefill_trust, max(FADED_WHOLE, self._prefill_trust * FADE_WHOLE))
        self._decode_trust = min(self._decode_trust, max(FADED_WHOLE, self._decode_trust * FADE_WHOLE))
        x = (requests, miss, hit, float(output), output * others, output * context, spread, 0.0)
        self._learn(x, y_ms, _relative(expected_ms), 1.0)

    def _learn(self, x: tuple[float, ...], y_ms: float, weight: float, share: float) -> None:
        """Give one sample to the regression, with the prior at the present paces and trusts."""
        solves = self._model.solves_next
        if solves:
            prefill, decode = self._prefill_pace.ratio, self._decode_pace.ratio
            self._model.prior[:] = [p * r for p, r in zip(PRIOR, _by_line(prefill, decode), strict=True)]
            trust = _by_line(self._prefill_trust, self._decode_trust)
            self._model.strength[:] = [s * t for s, t in zip(STRENGTH, trust, strict=True)]
        self._model.learn_one(x, y_ms, weight, share)
        if solves:
            self._publish()
        else:
            self._publish_share()

    def dump(self, now: float) -> SavedState:
        return {
            "coefficients": list(Coefficients._fields),
            "regression": self._model.dump(),
            "prefill_pace_ms": self._prefill_pace.dump(),
            "decode_pace_ms": self._decode_pace.dump(),
            "trust": [self._prefill_trust, self._decode_trust],
            "phi": [self._phi, self._phi_weight, max(0.0, now - self._phi_s)],
        }

    def load(self, state: SavedFields, saved_s: float) -> None:
        """saved_s: the time of the dump on the present clock. Raises SnapshotError, also if the state is of other
        coefficients than these."""
        state.same("coefficients", list(Coefficients._fields))
        paces = [state.numbers(key, 2, low=1e-300) for key in ("prefill_pace_ms", "decode_pace_ms")]
        trust = state.numbers("trust", 2, low=0.0)
        phi, phi_weight, idle_s = state.numbers("phi", 3, low=0.0)
        self._model.load(state.fields("regression"))
        self._prefill_pace.load(paces[0])
        self._decode_pace.load(paces[1])
        self._prefill_trust, self._decode_trust = trust
        self._phi, self._phi_weight, self._phi_s = phi, phi_weight, saved_s - idle_s
        self._publish()

    def _publish(self) -> None:
        """Derive everything that others read from the weights of the regression and phi."""
        self.coefficients = Coefficients(*self._model.weights)
        self.per_token_s = self.coefficients.per_token_s()
        self.tokens_per_s = 1.0 / max(1e-9, self.per_token_s.b)
        self._publish_share()

    def _publish_share(self) -> None:
        self._share = self.coefficients.gp * self._phi


def _prefill_ms(c: Coefficients, requests: float, miss: float, hit: float, spread: float) -> float:
    return c.a * requests + c.b * miss + c.al * hit + c.at * spread


def _by_line(prefill: float, decode: float) -> Coefficients:
    """A factor for each coefficient, by the line that it is in. That of gp is 1: gp is a share, whatever the pace, and
    its prior keeps its full strength."""
    return Coefficients(prefill, prefill, prefill, decode, decode, decode, prefill, 1.0)


def _fade(elapsed_s: float) -> float:
    """What is left of evidence after a time."""
    return 2.0 ** (-elapsed_s / BESIDE_HALF_S) if elapsed_s > 0 else 1.0


def _relative(expected_ms: float) -> float:
    """The weight of a sample by its prior-predicted time: relative errors count, but below 10 ms absolute ones."""
    return 1000.0 / (expected_ms * expected_ms + 100.0)
