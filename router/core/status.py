"""The router at one moment, for people and metrics: frozen, so that nobody reaches through it into the router's
parts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from router.types import EngineId, EngineInfo


class EngineStatus(NamedTuple):
    """One engine."""

    engine: EngineId
    healthy: bool
    """Whether it gets requests."""
    info: EngineInfo
    in_flight: int
    """Requests dispatched and not yet complete."""
    prediction_error: float | None
    """Mean of (actual - predicted) / predicted over its last answers; None: there was no answer to a prediction."""
    drifts: bool | None
    """Whether that mean is beyond its bound (`drift_bound`); None as above."""


class ArmStatus(NamedTuple):
    """One policy of the experiment."""

    policy: str
    share: float
    """Of the decisions, 0 to 1; 0: a shadow."""
    faults: int
    """How often it raised, or gave a cost that is no number."""
    seconds: float
    """What its scoring and learning took."""


class AgreementStatus(NamedTuple):
    """How the choices of `shadow` compare with those of `policy`, which decided."""

    policy: str
    shadow: str
    decisions: int
    agreed: int
    regret_s: float | None
    """What the shadow's choices would have cost more, in all; None where the policy's scores are no seconds."""


class RouterStatus(NamedTuple):
    """All of it. policy: the one that decides most."""

    policy: str
    engines: Mapping[EngineId, EngineStatus]
    arms: tuple[ArmStatus, ...]
    agreements: tuple[AgreementStatus, ...]
    faults: int
    """Of all policies now in the experiment and of those that stand in."""
    in_flight: int
    """Requests of the whole fleet that are not complete, those on engines that have left included."""
    index_blocks: int
    """(block, engine) pairs in the prefix index."""
