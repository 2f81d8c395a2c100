import random
from collections import Counter
from collections.abc import Mapping, Sequence

from router.policies.base import RoutingContext, pick
from router.policies.lbgr.policy import Lbgr
from router.policies.lbgr.shortlist import MOST_WEIGHED, shortlist
from router.types import Candidate, EngineId, EngineInfo, EngineView
from tests.support.virtual_fleet import answered, ask_for, router_with

E = EngineId("e0")


def many(loads: Sequence[int], hits: Mapping[int, float]) -> list[Candidate]:
    views = [
        EngineView(EngineId(f"e{n}"), EngineInfo(), load, 0, 0.0, 100.0 * load, 1e6) for n, load in enumerate(loads)
    ]
    return [Candidate(view, hits.get(n, 0.0)) for n, view in enumerate(views)]


def test_of_many_engines_the_longest_hits_the_least_loaded_and_a_sample_are_weighed() -> None:
    rng = random.Random(0)
    loads = [rng.randrange(2, 40) for _ in range(1000)]
    loads[17], hits = 0, {n: 16.0 * n for n in range(400, 500)}
    candidates = many(loads, hits)
    for chance in (0.0, 0.3, 0.999):
        places = shortlist([hit for _, hit in candidates], loads, chance)
        assert len(set(places)) == len(places) <= MOST_WEIGHED
        assert set(range(476, 500)) <= set(places)
        assert {17, *sorted(range(1000), key=loads.__getitem__)[:3]} <= set(places)
        routing = RoutingContext(ask_for(1), 9000.0, 50.0, 0.0, chance)
        weighed = Lbgr().choose(routing, candidates)
        assert (weighed.engines, weighed.eligible) == ([f"e{n}" for n in places], 1000)
        absent = next(n for n in range(600, 1000) if n not in places)
        assert weighed.find(EngineId(f"e{absent}")) is None
        too = Lbgr().choose(routing, candidates, (EngineId(f"e{absent}"),))  # of whom it is asked is weighed as well
        assert too.engines == [f"e{n}" for n in sorted([*places, absent])]
        assert [too.find(score.engine) for score in weighed] == list(weighed)


def test_up_to_that_many_all_are_weighed() -> None:
    found = Lbgr().choose(RoutingContext(ask_for(1), 900.0, 50.0, 0.0, 0.0), many([3] * MOST_WEIGHED, {}))
    assert (len(found), found.eligible) == (MOST_WEIGHED, MOST_WEIGHED)


def test_any_of_many_equal_engines_may_be_drawn() -> None:
    candidates, rng = many([0] * 300, {}), random.Random(1)
    drawn = Counter[EngineId]()
    for _ in range(3000):
        chance = rng.random()
        drawn[pick(Lbgr().choose(RoutingContext(ask_for(1), 900.0, 50.0, 0.0, chance), candidates), chance).engine] += 1
    assert len(drawn) == 300
    assert max(drawn.values()) < 40


def test_among_hundreds_of_engines_a_prefix_is_found_again_and_load_is_spread() -> None:
    router = router_with(300)
    home = router.route(ask_for(*range(50)), 0.0)
    router.complete(home, answered(1.0))
    assert router.route(ask_for(*range(50), 99), 2.0).engine == home.engine
    engines = [router.route(ask_for(1000 + n), 3.0).engine for n in range(290)]
    assert max(Counter(engines).values()) <= 2
    (entry,) = router.newest_decisions(1)
    assert entry.describe(4.0)["engines_left_out"] == 300 - 16


def test_a_shadow_learns_of_engines_that_it_did_not_weigh() -> None:
    router = router_with(300, "round_robin", shadow=("lbgr",))
    for n in range(100):
        decision = router.route(ask_for(n, n + 1000), float(n))
        assert decision.shadows[0].chosen.predicted_s is not None
        router.first_token(decision, n + 0.1)
        router.complete(decision, answered(n + 0.6, output=20))
    assert [arm.policy.describe(E)["samples"] for arm in router._experiment.arms if arm.name == "lbgr"] == [200]
