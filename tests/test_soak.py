"""Traffic that never repeats fills every map of the router to its cap and no further.

`benchmarks/micro/soak.py` does the same with the default caps and a million requests.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass

import pytest

from benchmarks.micro.soak import cap_bytes, router_of, size_bytes, soak
from router.config import Config, configure
from router.policies.table import TABLE

ENGINES = 4
LRU = ["lru"] * ENGINES
BLOCKS, DECISIONS = 10_000, 1_000
GENERATION = BLOCKS // ENGINES // 16  # blocks; the survival index checks its cap once in a generation of an engine


def totals_of(config: Config, orders: Sequence[str], requests: int, checkpoints: int) -> list[tuple[int, int]]:
    """The bytes of the router and the blocks in its index, at each checkpoint."""
    router = router_of(config, orders)
    return [(sum(sizes.values()), router.index_blocks) for _, sizes in soak(router, requests, checkpoints)]


def is_flat(totals: Sequence[int]) -> bool:
    """Whether they are even over the last 30 %, when the map that fills most slowly has long been full."""
    last = totals[-len(totals) * 3 // 10 :]
    return max(last) <= 1.03 * min(last)


@pytest.mark.parametrize(
    ("orders", "slack_blocks"),
    [(LRU, 0), (["rlt_gix"] * ENGINES, ENGINES * GENERATION), (["lru", "rlt_gix"] * 2, ENGINES * GENERATION)],
)
@pytest.mark.parametrize("policy", ["lbgr", "lmetric"])
def test_what_never_repeats_fills_the_caps_and_no_more(policy: str, orders: list[str], slack_blocks: int) -> None:
    config = configure(policy=policy, prefix_index_blocks=BLOCKS, ledger_decisions=DECISIONS)
    found = totals_of(config, orders, 12_000, 12)
    assert 0.95 * BLOCKS <= max(blocks for _, blocks in found) <= BLOCKS + slack_blocks
    assert max(total for total, _ in found) <= cap_bytes(config)
    assert is_flat([total for total, _ in found])


def test_every_policy_keeps_to_its_caps() -> None:
    shadow = tuple(name for name in TABLE if name != "lbgr")
    config = configure(shadow=shadow, prefix_index_blocks=BLOCKS, ledger_decisions=DECISIONS)
    assert max(total for total, _ in totals_of(config, LRU, 3_000, 3)) <= cap_bytes(config)


def test_a_map_that_grows_is_noticed() -> None:
    config = configure(policy="lmetric", prefix_index_blocks=BLOCKS, ledger_decisions=10**6)
    assert not is_flat([total for total, _ in totals_of(config, LRU, 12_000, 4)])


@dataclass(slots=True)
class Holder:
    one: object
    other: object = None


def test_every_object_counts_once() -> None:
    text = "x" * 5000
    named = {"key": text}
    objects = [text, text, named]
    assert size_bytes(objects) == sum(map(sys.getsizeof, (objects, text, named, "key")))
    assert size_bytes(Holder(Holder(text), text)) > 5000
    seen = {id(text)}
    holder = [text]
    assert size_bytes(holder, seen) == sys.getsizeof(holder)
    assert id(holder) in seen
    ring = Holder(None)
    ring.one = ring
    assert size_bytes(ring) < 200
    elsewhere = [sys, int, size_bytes]
    assert size_bytes(elsewhere) == sys.getsizeof(elsewhere)
