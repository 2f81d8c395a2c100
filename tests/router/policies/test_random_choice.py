from collections import Counter

from tests.support.virtual_fleet import ask_for, router_with


def test_every_engine_gets_its_share_whatever_it_holds_or_has_to_do() -> None:
    router = router_with(4, "random", seed=3)
    chosen = Counter(router.route(ask_for(1, 2, 3), 0.0).engine for _ in range(2000))
    assert sorted(chosen) == ["e0", "e1", "e2", "e3"]
    assert all(430 < count < 570 for count in chosen.values())  # 500 +- 3.6 standard deviations
