"""lbgr_paper: learning-based greedy routing exactly as published. It is here to compare with, not to serve with.

    Cost_ij = alpha_cached h_ij + alpha_miss (|q_j| - h_ij) + O_ij      service time            (section 3)
    P_i    <- P_i + Cost_ij at the choice, rho P_i every dt, P_i - what decay left of Cost_ij at the end   (4.2)
    E_ij    = Cost_ij + P_i + theta_i . phi_ij                          predicted latency       (4.2)
    i*      = argmin E_ij;    theta_i: online least squares on the residual E - (Cost + P), P as it stood at the choice

i: the engine; j: the request; h: cached prefix tokens; |q|: prompt tokens; O: cost of the output; P: the load of the
engine, which decays by rho every dt; phi = (1, h, |q| - h, P); theta: the learned weights of phi. Source: Wu, Silwal
and Zhang, "Randomization Boosts KV Caching, Learning Balances Query Load: A Joint Perspective" (ICLR 2026, arXiv
2601.18999). What the text leaves open is as in the authors' router (fzwark/KVRouting, EtaOnline3D in
sglang-0.4.6/sgl-router/src/router.rs): recursive least squares with forgetting that starts from a covariance of 10^6,
lengths and P divided by 1000 (LEN_SCALE), rho = 31/32 every 20 ms, predictions of at least 1 ms, and the constants
alpha_cached 0, O 0, alpha_miss 1 ms a character, which is 4 ms a token.

The option residual chooses what is learned: `linear` is as in the paper; `bias` is as in the authors' code, with
phi = (1) and residuals of at least 1 ms (their launcher starts it with a forgetting of .992).

Why it is not for serving: with the true cost of a token, P forgets a queue within a second. The residual then learns
that queue on whichever engine is slow, and traffic herds to the engines whose theta is out of date and low. Latencies
grow tenfold and more once waits are longer than the memory of P.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from operator import mul

from router.options import option
from router.policies.base import RoutingContext, Totals, TotalsPolicy
from router.types import Candidate, Decision, Ending, EngineId, Outcome, ReleasedBooking, Unit

SCALE = 1000.0  # lengths and loads in phi are divided by it
LEAST_MS = 1.0  # the smallest prediction
WOUND_UP = 1e6  # growth of the covariance at which it starts anew


class Residual:
    """theta_i by recursive least squares with forgetting; the residual is in milliseconds."""

    def __init__(self, features: int, forgetting: float, covariance: float) -> None:
        self.theta = [0.0] * features
        self._forgetting, self._start = forgetting, covariance
        self._p = self._fresh()

    def _fresh(self) -> list[list[float]]:
        n = range(len(self.theta))
        return [[self._start if row == column else 0.0 for column in n] for row in n]

    def predict_one(self, phi: Sequence[float]) -> float:
        predicted_ms: float = sum(map(mul, self.theta, phi))
        return predicted_ms

    def learn_one(self, phi: Sequence[float], y_ms: float) -> None:
        p_phi = [sum(map(mul, row, phi)) for row in self._p]
        denominator = self._forgetting + sum(map(mul, phi, p_phi))
        gain = [px / denominator for px in p_phi]
        error_ms = y_ms - self.predict_one(phi)
        self.theta = [weight + k * error_ms for weight, k in zip(self.theta, gain, strict=True)]
        self._p = [
            [(p - k * px) / self._forgetting for p, px in zip(row, p_phi, strict=True)]
            for k, row in zip(gain, self._p, strict=True)
        ]
        # Forgetting inflates the covariance in directions that no sample excites (P while the engine is idle, for
        # example) until it overflows.
        if max(abs(row[n]) for n, row in enumerate(self._p)) > WOUND_UP * self._start:
            self._p = self._fresh()


@dataclass(slots=True)
class _Engine:
    """One engine. load_ms: P_i as of the decay `tick`; unfinished: (Cost_ij, P_i at the choice), both in ms, of the
    requests that are there, by booking."""

    residual: Residual
    load_ms: float = 0.0
    tick: int = 0
    unfinished: dict[int, tuple[float, float]] = field(default_factory=dict)


@dataclass(frozen=True)
class LbgrPaperOptions:
    """The constants above. Only simulations can set them, because nobody should serve with this policy."""

    miss_ms_per_token: float = option(
        4.0, "cost of an uncached prompt token (alpha_miss)", unit="ms", low=0, study=True
    )
    cached_ms_per_token: float = option(
        0.0, "cost of a cached prompt token (alpha_cached)", unit="ms", low=0, study=True
    )
    output_ms_per_token: float = option(0.0, "cost of an output token (O)", unit="ms", low=0, study=True)
    decay: float = option(31 / 32, "what a decay interval leaves of an engine's load (rho)", low=0, high=1, study=True)
    decay_interval_ms: float = option(20.0, "time between two decays", unit="ms", low=0.001, study=True)
    forgetting: float = option(
        0.95,
        "factor on older residuals with each new one (the authors' launcher: 0.992)",
        low=0.01,
        high=1,
        study=True,
    )
    covariance: float = option(1e6, "start of the residual's covariance", low=1e-6, study=True)
    residual: str = option(
        "linear",
        "what is learned: linear as in the paper, or bias as in its authors' code",
        among=("linear", "bias"),
        study=True,
    )


class LbgrPaper(TotalsPolicy[LbgrPaperOptions]):
    """The total is the predicted latency, seconds. The policy keeps an entry for each engine and each request in
    flight."""

    name = "lbgr_paper"
    Options = LbgrPaperOptions

    def __init__(self, options: LbgrPaperOptions | None = None) -> None:
        super().__init__(options)
        chosen = self.options
        self._linear = chosen.residual == "linear"
        self._alphas = chosen.cached_ms_per_token, chosen.miss_ms_per_token, chosen.output_ms_per_token
        self._engines: dict[EngineId, _Engine] = {}
        self._unknown = self._new()

    def _new(self) -> _Engine:
        features = 4 if self._linear else 1
        return _Engine(Residual(features, self.options.forgetting, self.options.covariance))

    def weigh(self, routing: RoutingContext, candidates: Sequence[Candidate]) -> Totals:
        tick = self._tick(routing.now)
        service, queue, residual, totals = [], [], [], []
        for view, hit in candidates:
            engine = self._engines.get(view.engine, self._unknown)
            miss = routing.prompt_tokens - hit
            cost_ms = self._cost_ms(hit, miss, routing.output_tokens)
            load_ms = self._decayed(engine, tick)
            residual_ms = engine.residual.predict_one(self._phi(hit, miss, load_ms))
            service.append(cost_ms / 1e3)
            queue.append(load_ms / 1e3)
            residual.append(residual_ms / 1e3)
            totals.append(max(LEAST_MS, cost_ms + load_ms + residual_ms) / 1e3)  # E_ij
        terms = {"service": service, "queue": queue, "residual": residual}
        return Totals(totals, Unit.SECONDS, totals, terms)

    def _cost_ms(self, hit: float, miss: float, output: float) -> float:
        """Cost_ij, ms; lengths in tokens."""
        cached, uncached, out = self._alphas
        return cached * hit + uncached * miss + out * output

    def _phi(self, hit: float, miss: float, load_ms: float) -> tuple[float, ...]:
        return (1.0, hit / SCALE, miss / SCALE, load_ms / SCALE) if self._linear else (1.0,)

    def _tick(self, now: float) -> int:
        """The number of decay intervals until `now`."""
        return math.floor(now * 1e3 / self.options.decay_interval_ms)

    def _decayed(self, engine: _Engine, tick: int) -> float:
        """P_i at a later tick, ms."""
        if not engine.load_ms:
            return 0.0
        return engine.load_ms * self.options.decay ** max(0, tick - engine.tick)

    # --- events -------------------------------------------------------------------------------------------------

    def dispatched(self, decision: Decision) -> None:
        engine = self._engines.get(decision.engine)
        if engine is None:
            engine = self._engines[decision.engine] = self._new()
        hit = decision.hit_tokens
        cost_ms = self._cost_ms(hit, decision.prompt_tokens - hit, decision.output_tokens)
        self._move(engine, decision.dispatched_s)
        engine.unfinished[decision.booking] = cost_ms, engine.load_ms
        engine.load_ms += cost_ms  # P_i + Cost_ij

    def learn(self, decision: Decision, released: ReleasedBooking, outcome: Outcome) -> None:
        engine = self._engines.get(decision.engine)
        booked = engine.unfinished.pop(decision.booking, None) if engine else None
        if engine is None or booked is None:
            return  # the engine has left in the meantime
        cost_ms, load_ms = booked
        elapsed_ms = max(0.0, released.done_s - decision.dispatched_s) * 1e3
        self._move(engine, released.done_s)
        left = self.options.decay ** math.floor(elapsed_ms / self.options.decay_interval_ms)
        engine.load_ms = max(0.0, engine.load_ms - cost_ms * left)  # P_i - rho^(elapsed / dt) Cost_ij
        if outcome.ending is Ending.OK:
            y_ms = elapsed_ms - (cost_ms + load_ms)  # E - (Cost + P)
            phi = self._phi(decision.hit_tokens, decision.prompt_tokens - decision.hit_tokens, load_ms)
            engine.residual.learn_one(phi, y_ms if self._linear else max(LEAST_MS, y_ms))

    def _move(self, engine: _Engine, now: float) -> None:
        """Let the load decay until `now`."""
        tick = self._tick(now)
        engine.load_ms = self._decayed(engine, tick)  # rho P_i, every dt
        engine.tick = max(engine.tick, tick)

    def forget(self, engine: EngineId) -> None:
        self._engines.pop(engine, None)

    def describe(self, engine: EngineId) -> dict[str, object]:
        known = self._engines.get(engine, self._unknown)
        return {"load_ms": round(known.load_ms, 3), "theta_ms": [round(weight, 3) for weight in known.residual.theta]}
