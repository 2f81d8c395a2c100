"""The state of the router at one moment, for people and for metrics.

It is immutable and shares nothing with the router, so nobody can reach through it into the router's parts.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from router.core.holding import HoldingStatus
from router.core.sessions import SessionsStatus
from router.types import EngineId, EngineInfo


class EngineStatus(NamedTuple):
    """The state of one engine."""

    engine: EngineId
    healthy: bool
    """Whether it is well. Then it gets requests, unless it is draining."""
    info: EngineInfo
    in_flight: int
    """Requests that are dispatched and not yet complete."""
    prediction_error: float | None
    """The mean of (actual - predicted) / predicted latency over the last answers; None: no answer had a prediction."""
    drifts: bool | None
    """Whether that mean is beyond its bound (option `drift_bound`); None: no answer had a prediction."""
    share: str = "full"
    """`full`; `ejected`: it fails and gets no requests for a while; `returning`: its share grows again."""
    failure_rate: float = 0.0
    """The running rate of its requests that failed by its own fault, 0 to 1."""
    ejections: int = 0
    """How often it has been left out for its failures so far."""
    draining: bool = False
    """Whether it gets no new requests because an operator wants it so."""

    @property
    def ready(self) -> bool:
        """Whether it gets requests."""
        return self.healthy and not self.draining


class ArmStatus(NamedTuple):
    """The state of one policy of the experiment."""

    policy: str
    share: float
    """The share of the decisions that the policy makes, 0 to 1; 0: it is a shadow."""
    faults: int
    """How often the policy raised an exception or gave a cost that is not a number."""
    seconds: float
    """How long its scoring and learning took in all."""


class AgreementStatus(NamedTuple):
    """How the choices of `shadow` compare with those of `policy`, which decided."""

    policy: str
    shadow: str
    decisions: int
    """The decisions of `policy` that `shadow` scored too."""
    agreed: int
    """The decisions in which both chose the same engine."""
    regret_s: float | None
    """How much more the shadow's choices would have cost in all; None where the scores of `policy` are not seconds."""


class RouterStatus(NamedTuple):
    """The state of the whole router."""

    policy: str
    """The policy with the largest share of the decisions."""
    engines: Mapping[EngineId, EngineStatus]
    arms: tuple[ArmStatus, ...]
    agreements: tuple[AgreementStatus, ...]
    faults: int
    """The faults of all policies that are now in the experiment, and of the fallback policies."""
    in_flight: int
    """Requests that are not complete, including those on engines that have left the fleet."""
    index_blocks: int
    """The (block, engine) pairs in the prefix index."""
    sessions: SessionsStatus = SessionsStatus(0, 0, 0, None)
    holding: HoldingStatus = HoldingStatus(0, {}, 0.0)
