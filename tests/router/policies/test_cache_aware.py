import pytest

from router.config import configure
from router.policies.base import RoutingContext
from router.policies.cache_aware import CacheAware
from router.types import Candidate, EngineId, EngineInfo, EngineView
from tests.support.virtual_fleet import answered, ask_for, router_with


def scored(loads: tuple[int, ...], hits: tuple[float, ...], **options: float) -> list[float]:
    views = [EngineView(EngineId(f"e{n}"), EngineInfo(), load, 0) for n, load in enumerate(loads)]
    policy = CacheAware(configure(**options).policies.cache_aware)
    routing = RoutingContext(ask_for(1), 1000.0, 64.0, 0.0, 0.0)
    return [s.total for s in policy.choose(routing, [Candidate(v, h) for v, h in zip(views, hits, strict=True)])]


def test_worked_example() -> None:
    """A prompt of 1000 tokens: 301 cached are more than 0.3 of it, 300 are not."""
    assert scored((5, 9), (301.0, 0.0)) == [699.0, 1000.0]
    assert scored((5, 9), (300.0, 0.0)) == [0.0, 0.0]  # trees, both empty
    assert scored((5, 9), (300.0, 0.0), cache_threshold=0.25) == [700.0, 1000.0]


@pytest.mark.parametrize(
    ("loads", "balances"),
    [
        ((65, 0), True),
        ((64, 0), False),  # the difference must exceed balance_abs_threshold
        ((300, 200), False),  # and the ratio 1.5: balance_rel_threshold
        ((301, 200), True),
    ],
)
def test_a_longer_queue_outweighs_the_cache_past_both_thresholds(loads: tuple[int, ...], balances: bool) -> None:
    expected = [float(load) for load in loads] if balances else [1.0, 1000.0]
    assert scored(loads, (999.0, 0.0)) == expected


def test_the_thresholds_are_options() -> None:
    assert scored((2, 0), (999.0, 0.0), balance_abs_threshold=1) == [2.0, 0.0]
    assert scored((2, 1), (999.0, 0.0), balance_abs_threshold=0, balance_rel_threshold=3.0) == [1.0, 1000.0]


def test_new_prompts_go_where_the_tree_is_smallest_even_if_busier() -> None:
    router = router_with(2, "cache_aware")
    big = router.route(ask_for(*range(10)), 0.0)
    router.complete(big, answered(0.5))
    chosen = [router.route(ask_for(100 + n), 1.0).engine for n in range(9)]
    assert big.engine not in chosen  # nine of 64 tokens are less than one of 640
    assert router.describe(chosen[0])["tree_chars"] == 9 * 64 * 4


def test_what_is_cached_does_not_grow_the_tree() -> None:
    router = router_with(1, "cache_aware")
    for n in range(3):
        router.complete(router.route(ask_for(1, 2, 3, 4), float(n)), answered(n + 0.5))
    # 256 new tokens, then 16 each time: a hit is whole engine blocks and never the whole prompt
    assert router.describe(EngineId("e0"))["tree_chars"] == 4 * (256 + 16 + 16)


def test_trees_are_trimmed_at_intervals() -> None:
    router = router_with(1, "cache_aware", max_tree_size=1000, eviction_interval_secs=10.0)
    sizes = []
    for n, now in enumerate([0.0, 1.0, 9.0, 10.0, 19.0, 20.0]):
        router.complete(router.route(ask_for(*range(10 * n, 10 * n + 4)), now), answered(now + 0.5))
        sizes.append(router.describe(EngineId("e0"))["tree_chars"])
    assert sizes == [1000, 2024, 3048, 1000, 2024, 1000]
