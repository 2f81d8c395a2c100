"""The entry point `vllm.general_plugins`: it puts the adapter in place of vLLM's block pool, or refuses.

vLLM calls `register` in each of its processes, possibly more than once. The plugin is off unless LEAFCUTTER_EVICTION
names an order. If it cannot do what it was asked to, it raises, which stops the engine with the reason: the engine
never runs half patched. Importing this module needs no vLLM and must not fail, because vLLM logs a failing import and
goes on without the plugin.
"""

import logging
import multiprocessing
import os
from collections.abc import Mapping
from typing import Any

from engine_patches import __version__
from engine_patches.adapter import build_pool_class
from engine_patches.errors import HostError
from engine_patches.host_interface import Host, find_differences
from engine_patches.orders import ORDERS, EvictionOrder
from engine_patches.settings import EVICTION, Settings, read_settings

# A child of vLLM's own logger, which has a handler in every process of the engine.
logger = logging.getLogger("vllm.leafcutter")


def register(environ: Mapping[str, str] | None = None, host: Host | None = None) -> None:
    """Put the eviction order that `environ` names in place. A second call changes nothing.

    Raises SettingError or HostError, and then has changed nothing.
    """
    settings = read_settings(os.environ if environ is None else environ)
    if settings.order is None:
        return
    host = host or _find_host()
    active = getattr(host.coordinator.BlockPool, "leafcutter", None)
    if active is not None:
        if active != settings:
            raise HostError(f"{EVICTION.name} is {settings.order} with {settings}, but {active} is in place")
        return
    differences = find_differences(host)
    if differences:
        raise HostError(
            f"{EVICTION.name}={settings.order}, but Leafcutter {__version__} does not fit this vLLM: "
            + "; ".join(differences)
        )
    _put_in_place(settings, host)


def _put_in_place(settings: Settings, host: Host) -> None:
    assert settings.order is not None
    order_class = ORDERS[settings.order]
    exporter = None
    if settings.state_port is not None:
        from engine_patches.exporter import Exporter, rank_port

        port = rank_port(settings.state_port, multiprocessing.current_process().name)
        exporter = Exporter(port, settings.state_host, host.version, settings.hint_key)

    def make_order(num_blocks: int) -> EvictionOrder:
        return order_class(num_blocks, settings.seed)

    def announce(pool: Any) -> None:
        if exporter is not None:
            exporter.show(pool)
        logger.info(
            "Leafcutter %s is active: eviction order %s over %d blocks, state on %s",
            __version__,
            settings.order,
            pool.num_gpu_blocks - 1,
            "no port" if exporter is None else f"{settings.state_host}:{port}",
        )

    pool_class = build_pool_class(host.block_pool.BlockPool, make_order, announce)
    pool_class.leafcutter = settings
    host.coordinator.BlockPool = pool_class  # type: ignore[attr-defined]


def _find_host() -> Host:
    try:
        import vllm
        from vllm.v1.core import block_pool, kv_cache_coordinator, kv_cache_utils
    except ImportError as error:
        raise HostError(f"{EVICTION.name} is set, but vLLM cannot be imported: {error}") from error
    return Host(vllm.__version__, kv_cache_coordinator, block_pool, kv_cache_utils)
