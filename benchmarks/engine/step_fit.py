"""The step model of router/sim/fleet/hardware.py, fitted to steps of a real engine whose work is known.

For a fixed K = w / b the model is linear with coefficients that cannot be negative:

    step = a0 + b max(K, P) + q A + c n + d C

`fit` tries a range of K and takes the best. Errors are taken to be in proportion to the step, as in a gamma
distribution: the least sum of t / m - log(t / m) over measured t and model m, by least squares reweighted with 1 / m^2.
So the time of all steps together comes out right, which is what queues feel; least absolute errors would leave out
every delay. With five coefficients the non-negative solution is the best of the 31 choices of columns whose own
solution has no negative one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import Any

import numpy as np
import numpy.typing as npt

from router.sim.fleet.hardware import Hardware

Array = npt.NDArray[np.float64]
KNEES = (0.0, *np.geomspace(1, 4096, 25))  # prompt tokens
REWEIGHTS = 8


@dataclass(frozen=True, slots=True)
class Sample:
    """One step. prompt, lookback, sequences, context: P, A, n, C of the model; decoding: of the n sequences."""

    seconds: float
    prompt: int
    lookback: float
    sequences: int
    decoding: int
    context: int


REGIMES: Mapping[str, Callable[[Sample], bool]] = {
    "prefill, up to 64 tokens": lambda s: not s.decoding and s.prompt <= 64,
    "prefill, up to 512 tokens": lambda s: not s.decoding and 64 < s.prompt <= 512,
    "prefill, more": lambda s: not s.decoding and s.prompt > 512,
    "decode, 1 sequence": lambda s: not s.prompt and s.decoding == 1,
    "decode, 2 to 4 sequences": lambda s: not s.prompt and 1 < s.decoding <= 4,
    "decode, more, up to 256 tokens each": lambda s: not s.prompt and s.decoding > 4 and s.context <= 256 * s.decoding,
    "decode, more, longer": lambda s: not s.prompt and s.decoding > 4 and s.context > 256 * s.decoding,
    "mixed, up to 64 prompt tokens": lambda s: bool(s.decoding) and 0 < s.prompt <= 64,
    "mixed, more": lambda s: bool(s.decoding) and s.prompt > 64,
    "all": lambda _: True,
}


def fit(samples: Sequence[Sample], name: str, budget_tokens: int, cache_tokens: int) -> Hardware:
    """The most likely profile, three digits of each constant."""
    work = np.array([(s.prompt, s.lookback, s.sequences, s.context) for s in samples], dtype=float)
    took_ms = np.array([1e3 * s.seconds for s in samples])
    best: tuple[float, float, Array] | None = None
    for knee in KNEES:
        columns = np.column_stack([np.ones(len(work)), np.maximum(knee, work[:, 0]), work[:, 1:]])
        found = most_likely(columns, took_ms)
        ratio = took_ms / (columns @ found)
        unlikely = float((ratio - np.log(ratio)).sum())
        if best is None or unlikely < best[0]:
            best = unlikely, knee, found
    assert best is not None
    _, knee, (own, prompt, lookback, sequence, context) = best
    own, weights, prompt, lookback, sequence, context = (
        float(f"{value:.3g}") for value in (own, knee * prompt, prompt, lookback, sequence, context)
    )
    return Hardware(name, own, weights, prompt, lookback, sequence, context, budget_tokens, cache_tokens)


def most_likely(columns: Array, took: Array) -> Array:
    """x >= 0 where `took` has the mean columns x and a deviation in proportion to it."""
    expected = took
    for _ in range(REWEIGHTS):
        found = non_negative(columns / expected[:, None], took / expected)
        expected = columns @ found
    return found


def non_negative(rows: Array, target: Array) -> Array:
    """x >= 0 with the least squared error of rows x - target."""
    count = rows.shape[1]
    size = np.sqrt((rows * rows).sum(axis=0)) + np.finfo(float).tiny
    square, along = (rows / size).T @ (rows / size), (rows / size).T @ target
    best: Array = np.zeros(count)
    gain = 0.0
    for chosen in (list(c) for many in range(1, count + 1) for c in combinations(range(count), many)):
        found = np.linalg.lstsq(square[np.ix_(chosen, chosen)], along[chosen], rcond=None)[0]
        if (found >= 0).all() and found @ along[chosen] > gain:
            gain = found @ along[chosen]
            best = np.zeros(count)
            best[chosen] = found
    solution: Array = best / size
    return solution


def residuals(samples: Sequence[Sample], hardware: Hardware) -> list[dict[str, Any]]:
    """Relative errors of the profile, (model - measured) / measured, of the regimes that have samples."""
    rows = []
    for regime, belongs in REGIMES.items():
        mine = [sample for sample in samples if belongs(sample)]
        if not mine:
            continue
        errors = np.array([predict(sample, hardware) / sample.seconds - 1 for sample in mine])
        rows.append(
            {
                "regime": regime,
                "steps": len(mine),
                "median_ms": 1e3 * float(np.median([sample.seconds for sample in mine])),
                "error_median": float(np.median(errors)),
                "error_size_median": float(np.median(np.abs(errors))),
                "error_size_p90": float(np.percentile(np.abs(errors), 90)),
                "time_error": sum(predict(s, hardware) for s in mine) / sum(s.seconds for s in mine) - 1,
            }
        )
    return rows


def predict(sample: Sample, hardware: Hardware) -> float:
    """Seconds."""
    return hardware.step_s(sample.prompt, sample.lookback, sample.sequences, sample.context)


def profile_line(hardware: Hardware) -> str:
    """The profile as router/sim/fleet/hardware.py writes it."""
    fields: dict[str, Any] = asdict(hardware)
    name, most = fields.pop("name"), fields.pop("most_sequences")
    default = Hardware.__dataclass_fields__["most_sequences"].default
    values = [*fields.values(), *([] if most == default else [most])]
    return f'Hardware("{name}", {", ".join(f"{value:g}" if value < 1e4 else str(value) for value in values)})'
