"""The eviction orders, by name. Adding one is a file, a line here, and its row in the tests."""

from collections.abc import Mapping
from types import MappingProxyType

from engine_patches.orders.base import EvictionOrder, Key
from engine_patches.orders.gix import GIX
from engine_patches.orders.lru import LRU
from engine_patches.orders.rlt import RLT
from engine_patches.orders.rlt_gix import RLTGIX

ORDERS: Mapping[str, type[EvictionOrder]] = MappingProxyType(
    {
        "lru": LRU,
        "rlt": RLT,
        "gix": GIX,
        "rlt_gix": RLTGIX,
    }
)

__all__ = ["GIX", "LRU", "ORDERS", "RLT", "RLTGIX", "EvictionOrder", "Key"]
