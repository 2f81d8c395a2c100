"""Agents in a closed loop: who asks when, what is counted, and what orders are told."""

import json
from pathlib import Path

import pytest

from engine_patches.orders import EvictionOrder
from router.sim.fleet.agents import Agents
from router.sim.fleet.client import ActiveRequest
from router.sim.fleet.result import summarize
from router.sim.fleet.scenario import FleetSpec, Run
from router.sim.fleet.simulation import Simulation, simulate
from router.types import Decision, Stop

MAIN = [-1, [[0, 6400, 50, 1, 0, 1, 0, [[1, 100]]], [0, 6500, 50, 1, 7.0, 2, 100, [[200, 1]]]]]
CHILD = [0, [[0, 640, 5, 1, 0, 2, 0, [[300, 10]]]]]


@pytest.fixture
def file(tmp_path: Path) -> str:
    path = tmp_path / "agents.jsonl"
    line = {"tool": 64, "system": 64, "block": 64, "threads": [MAIN, CHILD]}
    path.write_text((json.dumps(line) + "\n") * 5)
    return str(path)


def run_of(
    file: str, *, order: str = "rlt_gix", hints: str = "off", users: int = 1, cache_tokens: int = 100_000
) -> Run:
    fleet = FleetSpec(1, ("h100-8b",), 64, cache_tokens=cache_tokens)
    return Run(Agents(file, users, 5.0, duration_s=300.0), fleet, "lbgr", order, 1, {}, hints)


def test_each_request_waits_for_the_answer_before_it(file: str) -> None:
    decisions: list[Decision] = []
    run = run_of(file)
    result = simulate(run, on_decision=decisions.append)
    served = {s.number: s for s in result.served}
    sent = [(d.request.session, d.dispatched_s, served[int(d.request.request_id)]) for d in decisions]
    (name, _, first), (child, child_s, _), (again, second_s, second) = sent[:3]
    assert name == again
    assert child == f"{name}.1"
    assert child_s == first.done_s
    assert second_s == first.done_s + 5.0  # 7 s, capped
    assert sent[3][0] != name
    assert sent[3][1] > second.done_s
    assert second.cached_tokens >= 6336
    assert result.failed == 0
    assert max(d.dispatched_s for d in decisions) <= 300
    row = summarize(run, result)
    counted = [s for s in result.served if 60 <= s.arrival_s <= 300]
    assert row.mean_s == pytest.approx(sum(s.done_s - s.arrival_s for s in counted) / len(counted))
    assert row.throughput_rps == sum(60 <= s.done_s <= 300 for s in result.served) / 240
    assert row.workload == f"{file} x1"


def test_a_conversation_that_fits_nowhere_is_given_up(file: str) -> None:
    result = simulate(run_of(file, cache_tokens=6000))
    assert result.failed > 5
    assert result.served == []


def test_jobs_say_how_they_end_and_whose_they_are(file: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = set()
    finish = Simulation._finish

    def watched(self: Simulation, job: object) -> None:
        seen.add((job.session is not None and "." in job.session, job.parent is not None, job.stop))  # type: ignore[attr-defined]
        finish(self, job)  # type: ignore[arg-type]

    monkeypatch.setattr(Simulation, "_finish", watched)
    simulate(run_of(file, hints="alone"))
    assert seen == {(False, False, Stop.TOOL_CALL), (False, False, Stop.END_OF_TURN), (True, True, Stop.END_OF_TURN)}


@pytest.mark.parametrize("hints", ["off", "alone", "on", "shuffled"])
def test_hints_change_nothing_where_all_fits(file: str, hints: str) -> None:
    assert simulate(run_of(file, hints=hints)).served == simulate(run_of(file, order="lru")).served


def test_hints_reach_the_orders(file: str) -> None:
    simulation = Simulation(run_of(file, hints="on", users=3), lambda _part: None, lambda _decision: None)
    orders: list[EvictionOrder] = []
    start = simulation._start_engine

    def watched(index: int) -> None:
        start(index)
        orders.extend(engine.pool.order for engine in simulation._engines.values())

    simulation._start_engine = watched  # type: ignore[method-assign]
    simulation.run()
    assert orders[0].hints > 10


@pytest.fixture
def crowd(tmp_path: Path) -> str:
    """Conversations of 30 requests with 30,000 tokens of context, which call a tool each time."""
    path, lines = tmp_path / "crowd.jsonl", []
    for _ in range(40):
        requests: list[list[object]] = [[0, 30_000, 200, 1, 0, 1, 0, [[1, 468]]]]
        for turn in range(1, 30):
            requests.append([0, 30_000 + 64 * turn, 200, 1, 3.0, 1, 467 + turn, [[1000 + turn, 1]]])
        lines.append(json.dumps({"tool": 64, "system": 64, "block": 64, "threads": [[-1, requests]]}))
    path.write_text("\n".join(lines))
    return str(path)


def play_crowd(file: str, hold_s: float, users: int) -> tuple[int, float, Simulation]:
    """Requests answered, hit rate, and the simulation, of two engines that hold four conversations each."""
    fleet = FleetSpec(2, ("h100-8b",), 64, cache_tokens=130_000)
    run = Run(Agents(file, users, 5.0, duration_s=600.0), fleet, "lbgr", "lru", 1, {"session_hold_secs": hold_s}, "off")
    simulation = Simulation(run, lambda _part: None, lambda _decision: None)
    result = simulation.run()
    counted = [served for served in result.served if served.arrival_s > 120]
    hit_rate = sum(s.cached_tokens for s in counted) / sum(s.prompt_tokens for s in counted)
    return len(result.served), hit_rate, simulation


def test_with_more_users_than_the_caches_hold_the_fleet_does_not_collapse(crowd: str) -> None:
    (thrashing, low, _), (served, high, simulation) = play_crowd(crowd, 0.0, 24), play_crowd(crowd, 120.0, 24)
    assert served > 1.1 * thrashing
    assert high > low + 0.2
    status = simulation._router.holding.status()
    assert status.held == 0
    assert status.released["fits"] > 10
    assert status.seconds <= 120.0 * sum(status.released.values())


def test_nobody_waits_where_the_caches_hold_all(crowd: str) -> None:
    (before, _, _), (after, _, simulation) = play_crowd(crowd, 0.0, 4), play_crowd(crowd, 120.0, 4)
    assert before == after
    assert sum(simulation._router.holding.status().released.values()) == 0


def test_a_client_that_leaves_while_it_is_held_is_not_placed(crowd: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every client of a held request leaves at once."""
    admit = Simulation._admit

    def impatient(self: Simulation, active: ActiveRequest) -> None:
        admit(self, active)
        if active.held is not None:
            self._schedule(self._now + 1.0, self._abandon, active)

    monkeypatch.setattr(Simulation, "_admit", impatient)
    _, _, simulation = play_crowd(crowd, 120.0, 24)
    assert simulation._abandoned >= simulation._router.holding.status().released["left"] > 100
    assert len(simulation._served) + simulation._abandoned + simulation._failed == simulation._requests
