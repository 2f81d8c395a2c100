"""The scenario of a run: the engines of a fleet, what happens to them, the traffic, and the policy that routes it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from engine_patches.orders import ORDERS
from router.sim.fleet.dialog import MODEL
from router.sim.fleet.engine import Engine
from router.sim.fleet.hardware import HARDWARE
from router.sim.fleet.traffic import Traffic
from router.sim.hints import OFF
from router.types import EngineInfo

ORDER_NAMES = tuple(ORDERS)


@dataclass(frozen=True, slots=True)
class Slowdown:
    """The engine with the index `engine` is `factor` times slower from `start_s` until `end_s`."""

    engine: int
    factor: float
    start_s: float
    end_s: float


@dataclass(frozen=True)
class FleetSpec:
    """The engines of a fleet and what happens to them. Engines are named by their index, from 0 to `engines` - 1, and
    all times are seconds from the start of the run."""

    engines: int
    hardware: tuple[str, ...]
    """Names in `HARDWARE`, which the engines take in turn."""
    block_tokens: int
    cache_tokens: int | None = None
    """The cache of each engine; None: that of its hardware."""
    reported_cache_ratio: float = 1.0
    """The cache size that engines report over the one that they have; 0: they report none."""
    unstreamed: float = 0.0
    """The share of the requests that are not streamed, so that nobody sees their first token."""
    slo_ttft_s: float | None = None
    """The bound on the first token that every request asks for."""
    slo_tpot_s: float | None = None
    """The bound on each later token that every request asks for."""
    slow: tuple[tuple[int, float], ...] = ()
    """Engines that are always slower than their hardware, and how many times slower."""
    degrade: tuple[Slowdown, ...] = ()
    """Engines that are slower for a while."""
    fail: tuple[tuple[int, float], ...] = ()
    """Engines that die, and when."""
    join: tuple[tuple[int, float], ...] = ()
    """Engines that start late, and when. An engine that fails before that time starts again, with an empty cache; any
    other one is not there from the beginning."""


@dataclass(frozen=True)
class Run:
    """One policy over one fleet under one load, from one seed."""

    traffic: Traffic
    fleet: FleetSpec
    policy: str
    order: str
    """The eviction order of the engines; several orders, joined by +, are taken in turn."""
    seed: int
    """It fixes the traffic (a trace is what it is), and all chance of the orders and of the router."""
    options: Mapping[str, object] = field(default_factory=dict)
    """Options of the router that differ from its defaults, by name."""
    hints: str = OFF
    """What the engines' orders are told of sessions, one of `hints.HINTS`."""


def build_engine(run: Run, index: int) -> Engine:
    """Return a new engine for this place in the fleet, with an empty cache."""
    fleet = run.fleet
    hardware = HARDWARE[fleet.hardware[index % len(fleet.hardware)]]
    blocks = (fleet.cache_tokens or hardware.cache_tokens) // fleet.block_tokens
    order = ORDERS[order_of(run, index)](blocks, seed=1000 * run.seed + index)
    return Engine(hardware, order, fleet.block_tokens, dict(fleet.slow).get(index, 1.0))


def describe_engine(run: Run, index: int, engine: Engine) -> EngineInfo:
    """Return what the engine reports of itself to the router."""
    blocks = round(engine.pool.size * run.fleet.reported_cache_ratio)
    return EngineInfo(
        models=(MODEL,),
        order=order_of(run, index),
        block_size=run.fleet.block_tokens,
        capacity_blocks=blocks or None,
    )


def order_of(run: Run, index: int) -> str:
    """Return the name of the eviction order of the engine at this place."""
    orders = run.order.split("+")
    return orders[index % len(orders)]
