"""What is simulated: the engines of a fleet, what happens to them, and who routes for them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from engine_patches.orders import ORDERS
from router.sim.fleet.dialog import MODEL
from router.sim.fleet.engine import Engine
from router.sim.fleet.hardware import HARDWARE
from router.sim.fleet.traffic import Traffic
from router.types import EngineInfo

ORDER_NAMES = tuple(ORDERS)


@dataclass(frozen=True, slots=True)
class Slowdown:
    """An engine is `factor` times slower from `start_s` until `end_s`."""

    engine: int
    factor: float
    start_s: float
    end_s: float


@dataclass(frozen=True)
class FleetSpec:
    """Engines 0 to engines - 1; `hardware` and `orders` go round among them. Times count from the first moment."""

    engines: int
    hardware: tuple[str, ...]
    block_tokens: int
    cache_tokens: int | None = None
    """Of each engine; None: as the hardware has it."""
    reported_cache_ratio: float = 1.0
    """The cache size that engines tell over the one they have; 0: they tell none."""
    unstreamed: float = 0.0
    """Share of the requests that show no first token."""
    slo_ttft_s: float | None = None
    slo_tpot_s: float | None = None
    """Bounds that every request asks to be kept: on its first token, on each later one."""
    slow: tuple[tuple[int, float], ...] = ()
    """Engines and how many times slower each is than its hardware, always."""
    degrade: tuple[Slowdown, ...] = ()
    fail: tuple[tuple[int, float], ...] = ()
    join: tuple[tuple[int, float], ...] = ()
    """Engines and when they start, empty: those that fail before, again; the others for the first time."""


@dataclass(frozen=True)
class Run:
    """One policy over engines of one order under one load. order: several joined by + go round among the engines.

    `seed` fixes the traffic (but for a trace), the lots of the orders and those of the router. options: of the router,
    beside its defaults.
    """

    traffic: Traffic
    fleet: FleetSpec
    policy: str
    order: str
    seed: int
    options: Mapping[str, object] = field(default_factory=dict)


def build_engine(run: Run, index: int) -> Engine:
    """A new engine, with an empty cache."""
    fleet = run.fleet
    hardware = HARDWARE[fleet.hardware[index % len(fleet.hardware)]]
    blocks = (fleet.cache_tokens or hardware.cache_tokens) // fleet.block_tokens
    order = ORDERS[order_of(run, index)](blocks, seed=1000 * run.seed + index)
    return Engine(hardware, order, fleet.block_tokens, dict(fleet.slow).get(index, 1.0))


def describe_engine(run: Run, index: int, engine: Engine) -> EngineInfo:
    """What the router is told of it."""
    blocks = round(engine.pool.size * run.fleet.reported_cache_ratio)
    return EngineInfo(
        models=(MODEL,),
        order=order_of(run, index),
        block_size=run.fleet.block_tokens,
        capacity_blocks=blocks or None,
    )


def order_of(run: Run, index: int) -> str:
    orders = run.order.split("+")
    return orders[index % len(orders)]
