"""Engines that come and go: what operators, the file of options and the engines themselves change."""

from __future__ import annotations

import json
import random

import pytest

from router.config import configure
from router.core.router import Router
from router.core.workers import State, Workers
from router.errors import ConfigError, NoEngine, SnapshotError, UnknownWorker, WorkerConflict
from router.saved_state import SavedFields
from router.types import Decision, Ending, EngineId, Outcome
from tests.support.virtual_fleet import ask_for

A, B, C = "http://a:1", "http://b:1", "http://c:1"
E0, E1, E2 = (EngineId(f"engine-{n}") for n in range(3))


class Fleet:
    """Workers at the URLs, all healthy. told: how often the listener has been called."""

    def __init__(self, *urls: str, policy: str = "least_loaded") -> None:
        config = configure(policy=policy)
        self.router = Router(config.routing, config.policies, rng=random.Random(1))
        self.workers = Workers(self.router, {EngineId(f"engine-{n}"): url for n, url in enumerate(urls)})
        self.told = 0
        self.workers.listeners.append(self._hear)
        self.well()

    def _hear(self) -> None:
        self.told += 1

    def well(self) -> None:
        for worker in self.workers:
            self.workers.set_health(worker, True)

    def route(self, now: float = 0.0) -> Decision:
        return self.router.route(ask_for(random.getrandbits(40)), now)

    def end(self, decision: Decision, now: float = 1.0) -> None:
        self.router.complete(decision, Outcome(Ending.OK, now, now, 64, 0, 8))

    def names(self) -> list[str]:
        assert set(self.router.status().engines) == set(self.workers.addresses), "the fleet holds their engines"
        return [worker.name for worker in self.workers]


def saved(workers: Workers) -> SavedFields:
    return SavedFields(json.loads(json.dumps(workers.dump())), "workers")


# --- adding -------------------------------------------------------------------------------------------------------


def test_an_added_engine_gets_requests_once_it_is_healthy() -> None:
    fleet = Fleet(A)
    worker = fleet.workers.add("HTTP://B:1/")
    assert (worker.name, worker.url, worker.engines, fleet.told) == ("engine-1", B, {E1: B}, 1)
    assert {fleet.route().engine for _ in range(4)} == {E0}
    fleet.well()
    assert fleet.route().engine == E1


def test_an_engine_that_is_there_already_is_not_added_again() -> None:
    fleet = Fleet("http://me:key@a")
    with pytest.raises(WorkerConflict, match=r"there already: `engine-0`, which is active"):
        fleet.workers.add("http://A")
    fleet.route()
    fleet.workers.remove(fleet.workers.find("engine-0"))
    with pytest.raises(WorkerConflict, match="removing"):
        fleet.workers.add("http://A")
    assert fleet.names() == ["engine-0"]


def test_what_is_no_url_is_refused_under_its_key() -> None:
    fleet = Fleet(A)
    with pytest.raises(ConfigError, match=r"'url' = 'b:1'"):
        fleet.workers.add("b:1")
    assert (fleet.names(), fleet.told) == (["engine-0"], 0)


def test_names_are_never_given_twice() -> None:
    fleet = Fleet(A, B)
    for n in range(2, 5):
        worker = fleet.workers.add(C)
        assert worker.name == f"engine-{n}"
        assert fleet.workers.remove(worker)
    assert fleet.names() == ["engine-0", "engine-1"]


def test_an_engine_that_joins_begins_slowly_and_those_at_the_start_do_not() -> None:
    fleet = Fleet(A, B, policy="round_robin")
    assert {engine.share for engine in fleet.router.status().engines.values()} == {"full"}
    fleet.workers.add(C)
    fleet.well()
    open_now = [fleet.route(0.1) for _ in range(21)]
    assert sum(each.engine == E2 for each in open_now) == 1
    assert fleet.router.status().engines[E2].share == "returning"
    now = 0.2
    while fleet.router.status().engines[E2].share != "full":
        now += 0.1
        for each in open_now:
            fleet.end(each, now)
        open_now = [fleet.route(now) for _ in range(9)]
        assert now < 5
    assert sum(each.engine == E2 for each in open_now) >= 3


# --- draining and removing ----------------------------------------------------------------------------------------


def test_an_engine_that_drains_gets_nothing_new_and_ends_what_it_has(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    fleet = Fleet(A, B)
    running = [fleet.route() for _ in range(4)]
    worker = fleet.workers.find("engine-1")
    fleet.workers.drain(worker, draining=True)
    assert {fleet.route().engine for _ in range(4)} == {E0}
    assert fleet.router.status().engines[E1].ready is False
    assert "engine-1 is drained" not in caplog.text
    for each in running:
        fleet.end(each)
    assert "engine-1 is drained" in caplog.text
    assert fleet.router.status().engines[E1].in_flight == 0
    fleet.workers.drain(worker, draining=False)
    assert fleet.route().engine == E1


def test_the_last_engine_may_drain_too() -> None:
    fleet = Fleet(A)
    fleet.workers.drain(fleet.workers.find("engine-0"), draining=True)
    with pytest.raises(NoEngine):
        fleet.route()


def test_a_drained_engine_stays_so_when_its_health_returns() -> None:
    fleet = Fleet(A, B)
    worker = fleet.workers.find("engine-1")
    fleet.workers.drain(worker, draining=True)
    fleet.workers.take_out(worker)
    fleet.well()
    assert {fleet.route().engine for _ in range(3)} == {E0}


def test_a_removed_engine_goes_when_its_last_request_has_ended() -> None:
    fleet = Fleet(A, B)
    running = sorted((fleet.route() for _ in range(4)), key=lambda decision: decision.engine)
    worker = fleet.workers.find("engine-1")
    assert not fleet.workers.remove(worker)
    assert not fleet.workers.remove(worker)
    for each in running[:-1]:
        fleet.end(each)
        assert E1 in fleet.router
    assert {fleet.route().engine for _ in range(3)} == {E0}
    before = fleet.told
    fleet.end(running[-1])
    assert (fleet.names(), fleet.told) == (["engine-0"], before + 1)
    assert fleet.router.index_blocks == 3 + sum(each.engine == E0 for each in running)
    assert fleet.router.find_decisions("r"), "what went there is still explained"
    with pytest.raises(UnknownWorker):
        fleet.workers.find("engine-1")


def test_a_removal_can_be_taken_back() -> None:
    fleet = Fleet(A, B)
    running = [fleet.route() for _ in range(2)]
    worker = fleet.workers.find("engine-1")
    fleet.workers.remove(worker)
    fleet.workers.drain(worker, draining=False)
    for each in running:
        fleet.end(each)
    assert fleet.names() == ["engine-0", "engine-1"]
    assert {fleet.route().engine for _ in range(2)} == {E0, E1}


def test_a_forced_removal_does_not_wait_and_late_ends_change_nothing() -> None:
    fleet = Fleet(A, B)
    running = [fleet.route() for _ in range(4)]
    assert fleet.workers.remove(fleet.workers.find("engine-1"), force=True)
    assert fleet.names() == ["engine-0"]
    for each in running:
        fleet.end(each)
    assert (fleet.router.in_flight, fleet.names()) == (0, ["engine-0"])


# --- the file of options ------------------------------------------------------------------------------------------


def test_an_edit_of_the_list_changes_what_it_changes_and_nothing_else() -> None:
    fleet = Fleet(A, B)
    fleet.workers.add(C)
    fleet.workers.drain(fleet.workers.find("engine-0"), draining=True)
    fleet.workers.relist([A, B])
    assert fleet.names() == ["engine-0", "engine-1", "engine-2"]
    fleet.workers.relist([A, B, "http://d:1"])
    assert fleet.names() == ["engine-0", "engine-1", "engine-2", "engine-3"], "the one of POST stays"
    fleet.workers.relist([B, "http://d:1"])
    assert fleet.names() == ["engine-1", "engine-2", "engine-3"]
    fleet.workers.remove(fleet.workers.find("engine-1"))
    fleet.workers.relist([B, "http://d:1", "http://e:1"])
    assert fleet.names() == ["engine-2", "engine-3", "engine-4"], "the one of DELETE does not come back"
    fleet.workers.relist(["http://d:1", C])
    assert fleet.names() == ["engine-2", "engine-3"], "a listed one is known already"
    fleet.workers.relist(["http://d:1"])
    assert fleet.names() == ["engine-3"], "and leaves when the list has it no more"


def test_an_engine_that_is_listed_again_while_it_drains_stays() -> None:
    fleet = Fleet(A, B)
    running = [fleet.route() for _ in range(2)]
    fleet.workers.relist([A])
    assert fleet.workers.find("engine-1").state is State.REMOVING
    fleet.workers.relist([A, B])
    for each in running:
        fleet.end(each)
    assert fleet.names() == ["engine-0", "engine-1"]
    assert fleet.workers.find("engine-1").state is State.ACTIVE


# --- data-parallel ranks ------------------------------------------------------------------------------------------


def test_each_rank_is_an_engine() -> None:
    fleet = Fleet(A, B)
    worker = fleet.workers.find("engine-1")
    fleet.workers.set_ranks(worker, [0, 1, 2])
    fleet.well()
    assert fleet.workers.addresses == {
        "engine-0": A,
        "engine-1-dp0": f"{B}#0",
        "engine-1-dp1": f"{B}#1",
        "engine-1-dp2": f"{B}#2",
    }
    assert {fleet.route().engine for _ in range(4)} == set(fleet.workers.addresses)
    assert {engine.share for engine in fleet.router.status().engines.values()} == {"full"}
    described = fleet.workers.describe(EngineId("engine-1-dp2"))
    assert described == {"worker": "engine-1", "url": B, "data_parallel_rank": 2, "state": "active"}
    told = fleet.told
    fleet.workers.set_ranks(worker, [0, 1, 2])
    assert fleet.told == told


def test_ranks_behind_one_of_several_servers_are_counted_from_0_there() -> None:
    """With hybrid load balancing each server names its ranks by their number in the whole deployment."""
    fleet = Fleet(A)
    fleet.workers.set_ranks(fleet.workers.find("engine-0"), [4, 5])
    assert fleet.workers.addresses == {"engine-0-dp4": f"{A}#0", "engine-0-dp5": f"{A}#1"}


def test_a_single_rank_is_the_only_engine() -> None:
    fleet = Fleet(A)
    fleet.workers.set_ranks(fleet.workers.find("engine-0"), [3])
    assert (fleet.workers.addresses, fleet.told) == ({"engine-0": A}, 0)
    assert fleet.workers.describe(E0)["data_parallel_rank"] is None


def test_ranks_are_changed_as_a_whole() -> None:
    fleet = Fleet(A, B)
    worker = fleet.workers.find("engine-1")
    fleet.workers.set_ranks(worker, [0, 1])
    fleet.well()
    with pytest.raises(WorkerConflict, match="`engine-1-dp1` is a rank of `engine-1`"):
        fleet.workers.find("engine-1-dp1")
    running = [fleet.route() for _ in range(3)]
    fleet.workers.remove(worker)
    assert {fleet.route().engine for _ in range(3)} == {E0}
    for each in running:
        fleet.end(each)
    assert fleet.names() == ["engine-0"]


def test_a_rank_that_is_gone_leaves_when_its_requests_have_ended() -> None:
    fleet = Fleet(A)
    worker = fleet.workers.find("engine-0")
    running = fleet.route()
    fleet.workers.set_ranks(worker, [0, 1])
    fleet.well()
    assert fleet.workers.describe(E0)["state"] == "removing"
    assert {fleet.route().engine for _ in range(2)} == {"engine-0-dp0", "engine-0-dp1"}
    fleet.end(running)
    assert set(fleet.workers.addresses) == {"engine-0-dp0", "engine-0-dp1"}
    fleet.names()


def test_health_is_that_of_the_server() -> None:
    fleet = Fleet(A, B)
    worker = fleet.workers.find("engine-1")
    fleet.workers.set_ranks(worker, [0, 1])
    assert not fleet.workers.healthy(worker)
    fleet.well()
    moved = list[EngineId]()
    fleet.router.on_out = moved.append
    assert (fleet.workers.healthy(worker), fleet.workers.healthy_engines()) == (True, (3, 3))
    fleet.workers.take_out(worker)
    assert (moved, fleet.workers.healthy_engines()) == (["engine-1-dp0", "engine-1-dp1"], (1, 3))
    fleet.workers.take_out(fleet.workers.find("engine-0"))
    assert len(moved) == 2, "its ranks do not stand in for each other"


# --- for the next router process ----------------------------------------------------------------------------------


def test_another_router_process_goes_on_with_the_same_workers() -> None:
    fleet = Fleet(A, B)
    fleet.workers.set_ranks(fleet.workers.find("engine-0"), [0, 1])
    fleet.workers.remove(fleet.workers.add(C))
    fleet.workers.add(C)
    fleet.well()
    [fleet.route() for _ in range(4)]
    fleet.workers.drain(fleet.workers.find("engine-3"), draining=True)
    fleet.workers.remove(fleet.workers.find("engine-1"))

    other = Fleet(A, B)
    other.workers.load(saved(fleet.workers))
    assert other.workers.addresses == fleet.workers.addresses
    assert other.names() == fleet.names() == ["engine-0", "engine-1", "engine-3"]
    other.well()
    assert {engine.share for engine in other.router.status().engines.values()} == {"full"}, "all are new to it"
    assert {other.route().engine for _ in range(2)} == {"engine-0-dp0", "engine-0-dp1"}
    other.workers.sweep()
    assert other.names() == ["engine-0", "engine-3"]
    assert other.workers.add("http://d:1").name == "engine-4"
    other.workers.relist([A])
    assert other.names() == ["engine-0", "engine-3", "engine-4"]


@pytest.mark.parametrize(
    "change",
    [
        {"next": -1},
        {"next": "1"},
        {"listed": None},
        {"listed": ["nowhere"]},
        {"workers": [{"name": "x"}]},
        {"workers": [{"name": "x", "url": "nowhere", "state": "active", "ranks": []}]},
        {"workers": [{"name": "x", "url": A, "state": "gone", "ranks": []}]},
        {"workers": [{"name": "x", "url": A, "state": "active", "ranks": ["1"]}]},
    ],
)
def test_what_cannot_be_loaded_changes_nothing(change: dict[str, object]) -> None:
    fleet = Fleet(A, B)
    with pytest.raises((SnapshotError, ConfigError, ValueError)):
        fleet.workers.load(SavedFields({**fleet.workers.dump(), **change}, "workers"))
    assert (fleet.names(), fleet.told) == (["engine-0", "engine-1"], 0)
