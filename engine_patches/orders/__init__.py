"""The eviction orders by name. To add one, write its file, add a line here, and add its row in the tests."""

from collections.abc import Mapping
from types import MappingProxyType

from engine_patches.orders.arc import ARC
from engine_patches.orders.base import EvictionOrder, Key
from engine_patches.orders.gix import GIX
from engine_patches.orders.lfu import LFU
from engine_patches.orders.lru import LRU
from engine_patches.orders.rlt import RLT
from engine_patches.orders.rlt_gix import RLTGIX
from engine_patches.orders.s3fifo import S3FIFO
from engine_patches.orders.sieve import SIEVE

ORDERS: Mapping[str, type[EvictionOrder]] = MappingProxyType(
    {
        "lru": LRU,
        "rlt": RLT,
        "gix": GIX,
        "rlt_gix": RLTGIX,
        "lfu": LFU,
        "sieve": SIEVE,
        "s3fifo": S3FIFO,
        "arc": ARC,
    }
)

__all__ = ["ARC", "GIX", "LFU", "LRU", "ORDERS", "RLT", "RLTGIX", "S3FIFO", "SIEVE", "EvictionOrder", "Key"]
