"""The eviction orders, by name. Adding one is a file, a line here, and its row in the tests."""

from collections.abc import Mapping
from types import MappingProxyType

from engine_patches.orders.base import EvictionOrder, Key
from engine_patches.orders.lru import LRU
from engine_patches.orders.rlt import RLT

ORDERS: Mapping[str, type[EvictionOrder]] = MappingProxyType({"lru": LRU, "rlt": RLT})

__all__ = ["LRU", "ORDERS", "RLT", "EvictionOrder", "Key"]
