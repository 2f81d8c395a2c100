from router.types import EngineId
from tests.support.virtual_fleet import answered, ask_for, router_with


def test_the_engine_with_the_fewest_in_flight_gets_the_request() -> None:
    router = router_with(3, "least_loaded")
    decisions = [router.route(ask_for(n), 0.0) for n in range(9)]
    assert [router._fleet.view(engine).in_flight for engine in router._fleet.ids()] == [3, 3, 3]
    gone = next(d for d in decisions if d.engine == "e1")
    router.complete(gone, answered(1.0))
    decision = router.route(ask_for(99), 1.0)
    assert decision.engine == EngineId("e1")
    assert [score.total for score in decision.scores] == [3.0, 2.0, 3.0]
