"""The order's state over HTTP, as Prometheus metrics, served by the process that owns the block pool.

Hints about sessions come in at the same port (`hints`).

Counters are plain ints that the scheduler thread writes and a scrape reads. So there is no lock in the engine's step,
and a scrape during a step may see numbers that are one event apart. Each process has one server. It starts with the
first pool and shows the pool that was built last, as vLLM builds the CPU-side pool of its offload manager before the
engine's own.
"""

import re
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, Protocol

from prometheus_client import CollectorRegistry, Metric
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from engine_patches import __version__
from engine_patches.adapter import Hint
from engine_patches.errors import SettingError
from engine_patches.hints import HintDesk, build_app
from engine_patches.orders import EvictionOrder
from engine_patches.settings import STATE_PORT
from engine_patches.state_server import start_state_server

PREFIX = "leafcutter_engine_"

COUNTERS = (
    ("phases", "Phases begun by the order; 0 for an order without phases."),
    ("evictions", "Cached keys whose last block was evicted to make room."),
    ("hits", "Cached blocks reused by a request."),
    ("misses", "Prefixes cached that no block carried."),
    ("shadow_misses", "Misses of the order that a guard follows, on the same requests; 0 without a guard."),
    ("fallbacks", "Times a guard took over; 0 without one."),
    ("hints", "Hints about sessions that the order knew; 0 for an order that heeds none."),
)
GAUGES = (
    ("marked", "Cached keys marked in this phase; 0 for an order without phases."),
    ("free", "Blocks no request holds: the cache's own."),
    ("cached", "Blocks that carry a prefix hash."),
)


class Pool(Protocol):
    """What the exporter reads of the adapter's pool."""

    order: EvictionOrder
    hash_block_size: int
    num_gpu_blocks: int
    hints: deque[Hint]


class Exporter(Collector):
    """Serves the metrics of one pool, and passes hints on to it from senders that have the key; None: from nobody.

    `serve(port, address, app)` starts the HTTP server.
    """

    def __init__(
        self,
        port: int,
        address: str,
        vllm_version: str,
        hint_key: str | None = None,
        serve: Callable[..., Any] = start_state_server,
    ) -> None:
        self._desk = None if hint_key is None else HintDesk(hint_key, self._pass_on)
        self._address = (port, address)
        self._vllm_version = vllm_version
        self._serve = serve
        self._pool: weakref.ref[Pool] | None = None

    def show(self, pool: Pool) -> None:
        """Show this pool from now on. The first call binds the port and raises SettingError if that is taken."""
        if self._pool is None:
            registry = CollectorRegistry()
            registry.register(self)
            port, address = self._address
            try:
                self._serve(port, address, build_app(registry, self._desk))
            except (OSError, OverflowError) as error:
                raise SettingError(
                    f"{STATE_PORT.name}: cannot listen on {address}:{port} ({error}); expected a free port, "
                    "a different one for each engine on this machine"
                ) from error
        self._pool = weakref.ref(pool)

    def _pass_on(self, hint: Hint) -> None:
        pool = self._pool() if self._pool else None
        if pool is not None:
            pool.hints.append(hint)

    def collect(self) -> Iterator[Metric]:
        pool = self._pool() if self._pool else None
        if pool is None:
            return
        order = pool.order
        info = GaugeMetricFamily(PREFIX + "info", "Always 1.", labels=["order", "plugin_version", "vllm_version"])
        info.add_metric([order.name, __version__, self._vllm_version], 1)
        yield info
        yield _gauge("block_size_tokens", "Tokens that one block hash covers.", pool.hash_block_size)
        yield _gauge("capacity_blocks", "Blocks of the cache, its null block left out.", pool.num_gpu_blocks - 1)
        for name, text in COUNTERS:
            yield CounterMetricFamily(PREFIX + name, text, value=getattr(order, name))
        for name, text in GAUGES:
            yield _gauge(name + "_blocks", text, getattr(order, name))
        yield _gauge("fallback", "1 while a guard decides in place of the learned order.", order.fallback)


def rank_port(port: int, process_name: str) -> int:
    """Return the port of this process: `port` plus its data-parallel rank.

    vLLM names the engine processes of data-parallel ranks EngineCore_DP0, EngineCore_DP1 ...
    """
    rank = re.fullmatch(r"EngineCore_DP(\d+)", process_name)
    return port + int(rank[1]) if rank else port


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(PREFIX + name, text, value=value)
