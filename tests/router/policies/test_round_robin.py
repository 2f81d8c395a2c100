from router.types import Ending, EngineId, Outcome
from tests.support.virtual_fleet import ask_for, router_with


def test_everyone_gets_a_turn_before_anyone_gets_two() -> None:
    router = router_with(3, "round_robin")
    chosen = [router.route(ask_for(1), 0.0).engine for _ in range(9)]
    assert sorted(chosen[:3]) == ["e0", "e1", "e2"]
    assert chosen[:3] == chosen[3:6] == chosen[6:]


def test_turns_stay_fair_when_an_engine_was_away() -> None:
    router = router_with(2, "round_robin")
    router.set_health(EngineId("e1"), False)
    assert {router.route(ask_for(1), 0.0).engine for _ in range(5)} == {"e0"}
    router.set_health(EngineId("e1"), True)
    turns = []
    for _ in range(4):
        turns.append(router.route(ask_for(1), 0.0))
        router.complete(turns[-1], Outcome(Ending.OK, 0.0))  # it has returned, so it gets one request at a time
    assert [decision.engine for decision in turns] == ["e1", "e0", "e1", "e0"]
