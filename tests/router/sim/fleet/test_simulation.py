"""Whole runs: clients, the router, engines."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import pytest

from router.core.router import Router
from router.errors import NoEngine
from router.policies.table import TABLE
from router.sim.fleet import simulation as module
from router.sim.fleet.engine import Engine
from router.sim.fleet.scenario import FleetSpec, Run, Slowdown, describe_engine
from router.sim.fleet.simulation import RunResult, simulate
from router.sim.fleet.traffic import WORKLOADS, Replay, Workload, replay
from router.sim.trace import TraceFile
from router.types import Decision, EngineInfo

Line = dict[str, Any]

L40 = FleetSpec(3, ("l40-8b",), 128)


def run_of(
    name: str = "gsp",
    rate: float = 6.0,
    requests: int = 150,
    fleet: FleetSpec = L40,
    policy: str = "lbgr",
    order: str = "rlt_gix",
    seed: int = 0,
    **options: object,
) -> Run:
    return Run(Workload(name, rate, requests), fleet, policy, order, seed, options)


@pytest.mark.parametrize("name", WORKLOADS)
def test_every_request_is_answered_once(name: str) -> None:
    result = simulate(run_of(name, rate=1.5, requests=120))
    assert sorted(served.number for served in result.served) == list(range(result.requests))
    assert (result.failed, result.requests >= 120) == (0, True)
    for served in result.served:
        assert served.arrival_s < served.first_s <= served.done_s
        assert 0 <= served.cached_tokens < served.prompt_tokens
    assert all(0 < busy <= max(s.done_s for s in result.served) for busy in result.busy_s)


@pytest.mark.parametrize("policy", TABLE)
def test_every_policy_routes(policy: str) -> None:
    result = simulate(run_of(policy=policy, requests=60))
    assert len(result.served) == 60


def test_the_same_seed_the_same_run() -> None:
    assert simulate(run_of()) == simulate(run_of())
    assert simulate(run_of()) != simulate(run_of(seed=1))


def test_a_chat_waits_for_its_answers() -> None:
    run = run_of("chat", rate=0.5, requests=80)
    at = {served.number: served for served in simulate(run).served}
    number = 0
    for session in run.traffic.open(0, 128):
        assert at[number].arrival_s == session.arrival_s
        for turn, before in zip(session.turns[1:], range(number, number + len(session.turns)), strict=False):
            assert at[before + 1].arrival_s == pytest.approx(at[before].done_s + turn.pause_s)
            assert at[before + 1].prompt_tokens > at[before].prompt_tokens + at[before].output_tokens
        number += len(session.turns)


def test_what_a_chat_said_is_cached() -> None:
    result = simulate(run_of("chat", rate=0.05, requests=60))
    later = [s for s in result.served if s.cached_tokens]
    assert len(later) > 30
    assert sum(s.cached_tokens for s in later) / sum(s.prompt_tokens for s in later) > 0.6


def decisions_of(run: Run) -> list[Decision]:
    seen: list[Decision] = []
    simulate(run, on_decision=seen.append)
    return seen


def test_the_router_is_told_of_engines() -> None:
    (decision,) = decisions_of(run_of(requests=1))
    assert {score.engine for score in decision.scores} == {"engine-0", "engine-1", "engine-2"}


@pytest.mark.parametrize(("ratio", "blocks"), [(1.0, 78), (3.0, 234), (0.0, None)])
def test_the_size_that_engines_tell(ratio: float, blocks: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[EngineInfo] = []

    def describe(run: Run, index: int, engine: Engine) -> EngineInfo:
        seen.append(describe_engine(run, index, engine))
        return seen[-1]

    monkeypatch.setattr(module, "describe_engine", describe)
    simulate(run_of(requests=5, fleet=replace(L40, cache_tokens=10_000, reported_cache_ratio=ratio)))
    assert {info.capacity_blocks for info in seen} == {blocks}
    assert {(info.block_size, info.order) for info in seen} == {(128, "rlt_gix")}


def test_orders_and_hardware_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[str, str | None]] = []
    monkeypatch.setattr(module, "describe_engine", lambda *a: note(seen, *a))
    monkeypatch.setattr(Router, "route", refuse)
    simulate(run_of(requests=1, order="lru+gix", fleet=replace(L40, hardware=("l40-8b", "h100-8b"))))
    assert seen == [("l40-8b", "lru"), ("h100-8b", "gix"), ("l40-8b", "lru")]


def note(seen: list[tuple[str, str | None]], run: Run, index: int, engine: Engine) -> EngineInfo:
    info = describe_engine(run, index, engine)
    seen.append((engine.hardware.name, info.order))
    return info


def refuse(*_args: object, **_kwargs: object) -> NoReturn:
    raise NoEngine("none")


def test_a_request_without_an_engine_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Router, "route", refuse)
    result = simulate(run_of(requests=7))
    assert (len(result.served), result.failed) == (0, 7)


def shares(result: RunResult) -> Counter[int]:
    return Counter(served.engine for served in result.served)


def test_a_slow_engine_gets_less() -> None:
    for fleet in (replace(L40, slow=((1, 3.0),)), replace(L40, degrade=(Slowdown(1, 3.0, 0.0, 1e9),))):
        work = Counter[int]()
        for served in simulate(run_of(requests=400, fleet=fleet)).served:
            work[served.engine] += served.prompt_tokens - served.cached_tokens
        assert work[1] < 0.6 * min(work[0], work[2]), work


def test_a_slowdown_ends() -> None:
    fleet = replace(L40, engines=1, degrade=(Slowdown(0, 10.0, 50.0, 100.0),))
    served = simulate(run_of(rate=0.2, requests=40, fleet=fleet)).served
    slowest = max(served, key=lambda s: (s.done_s - s.first_s) / (s.output_tokens - 1))
    assert 50 <= slowest.first_s <= 100
    usual = [s.done_s - s.first_s for s in served if s.first_s > 102]
    assert usual
    assert max(usual) < 0.5 * (slowest.done_s - slowest.first_s)


def test_unstreamed_requests() -> None:
    streams = [d.request.stream for d in decisions_of(run_of(requests=200, fleet=replace(L40, unstreamed=0.5)))]
    assert 60 < sum(streams) < 140
    assert not any(d.request.stream for d in decisions_of(run_of(requests=20, fleet=replace(L40, unstreamed=1.0))))


def test_an_engine_fails() -> None:
    seen: list[Decision] = []
    result = simulate(
        run_of("heavy", rate=8, requests=400, fleet=replace(L40, fail=((1, 20.0),))), on_decision=seen.append
    )
    assert len(result.served) + result.failed == result.requests
    assert 0 < result.failed < 60  # those that had begun their answers
    assert max(s.done_s for s in result.served if s.engine == 1) <= 20.0
    again = Counter(decision.request.request_id for decision in seen)
    assert set(again.values()) <= {1, 2, 3}
    retried = {int(name) for name, count in again.items() if count > 1}
    assert retried & {s.number for s in result.served}
    # What it breaks leaves it out for a while. The first refusal after that marks it; nothing goes there any more.
    late = [d for d in seen if d.dispatched_s > 21]
    assert late
    assert sum(d.engine == "engine-1" for d in late) <= 1


def test_unstreamed_requests_survive_their_engine() -> None:
    fleet = replace(L40, fail=((1, 20.0),), unstreamed=1.0)
    result = simulate(run_of("heavy", rate=8, requests=300, fleet=fleet))
    assert (result.failed, len(result.served)) == (0, 300)


def test_the_last_engine_fails() -> None:
    result = simulate(run_of("heavy", rate=2, requests=100, fleet=replace(L40, engines=1, fail=((0, 20.0),))))
    assert result.failed + len(result.served) == 100
    assert max(s.done_s for s in result.served) <= 20.0


def test_a_check_finds_a_dead_engine() -> None:
    fleet = replace(L40, fail=((0, 1.0),))
    seen = decisions_of(run_of(rate=0.02, requests=4, policy="round_robin", fleet=fleet))
    assert "engine-0" not in {d.engine for d in seen if d.dispatched_s > 1.0 + 15.0}


def test_an_engine_joins() -> None:
    result = simulate(run_of(requests=300, fleet=replace(L40, join=((2, 20.0),))))
    assert (len(result.served), result.failed) == (300, 0)
    joined = [s for s in result.served if s.engine == 2]
    assert joined
    assert min(s.arrival_s for s in joined) >= 20.0


def test_an_engine_comes_back_empty() -> None:
    fleet = replace(L40, engines=1, fail=((0, 40.0),), join=((0, 41.0),))
    run = run_of("chat", rate=0.05, requests=40, fleet=fleet)
    result = simulate(run)
    before = [s for s in result.served if s.done_s <= 40.0]
    first = min((s for s in result.served if s.done_s > 41.0), key=lambda s: s.arrival_s)
    assert before
    assert first.cached_tokens == 0


def test_all_engines_join_late() -> None:
    result = simulate(run_of(rate=1.0, requests=20, fleet=replace(L40, engines=1, join=((0, 10.0),))))
    assert 0 < result.failed < 20
    assert len(result.served) == 20 - result.failed


def test_a_request_longer_than_the_cache_is_refused() -> None:
    result = simulate(run_of(requests=60, fleet=replace(L40, cache_tokens=2000)))
    assert result.failed > 0
    assert all(s.prompt_tokens < 2000 for s in result.served)
    assert len(result.served) + result.failed == 60


def test_preemptions_are_counted() -> None:
    result = simulate(run_of("heavy", rate=40, requests=200, fleet=replace(L40, cache_tokens=30_000)))
    assert result.preemptions > 0
    assert len(result.served) == 200


def test_options_reach_the_router() -> None:
    plain, other = run_of(order="lru"), run_of(order="lru", lbgr_duplication_weight=0.0)
    assert simulate(plain) != simulate(other)


def test_a_trace_is_replayed(tmp_path: Path) -> None:
    lines = [
        {"timestamp": 100 * n, "input_length": 1000, "output_length": 5, "hash_ids": [n % 3, 10 + n]} for n in range(30)
    ]
    path = tmp_path / "trace.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)))
    traffic = replay(TraceFile(str(path)), skip=0, requests=None, rate=None, scale=1.0, spread=False)
    result = simulate(Run(traffic, FleetSpec(2, ("h100-8b",), 512), "lbgr", "lru", 0))
    assert {s.prompt_tokens for s in result.served} == {1000}
    assert {s.cached_tokens for s in result.served} == {0, 512}
    assert [s.arrival_s for s in sorted(result.served)] == pytest.approx([0.1 * n for n in range(30)])


def recorded(path: Path, *lines: Line, requests: int | None = None) -> Replay:
    path.write_text("\n".join(map(json.dumps, lines)))
    return replay(TraceFile(str(path)), skip=0, requests=requests, rate=None, scale=1.0, spread=False)


def line_of(at_ms: int, **fields: object) -> Line:
    told: Line = {"timestamp": at_ms, "input_length": 1000, "output_length": 20, "hash_ids": [], "ending": "ok"}
    return told | fields


def test_what_a_recording_tells_reaches_the_router(tmp_path: Path) -> None:
    told = {"max_tokens": 77, "route": "/v1/chat/completions", "session": "ab"}
    lines = [line_of(1000 * n, stream=n % 2 == 0, **told) for n in range(8)] + [line_of(9000)]
    fleet = FleetSpec(2, ("h100-8b",), 512, unstreamed=1.0)
    *seen, last = decisions_of(Run(recorded(tmp_path / "t", *lines), fleet, "lbgr", "lru", 0))
    assert [decision.request.stream for decision in seen] == [True, False] * 4
    assert {(d.request.max_tokens, d.request.route, d.request.session) for d in seen} == {tuple(told.values())}
    assert (last.request.max_tokens, last.request.stream, last.request.session) == (None, False, None)


@pytest.mark.parametrize("max_tokens", [None, 5000])
def test_a_request_that_was_abandoned_holds_its_engine_until_then(tmp_path: Path, max_tokens: int | None) -> None:
    """Beside one that decodes for 30 s another one is slower, however few tokens had come to its client."""
    gone = line_of(0, output_length=3, max_tokens=max_tokens, ending="cancelled", latency_ms=30_000)
    runs: dict[str, tuple[RunResult, list[float]]] = {}
    for name, lines in (("gone", [gone, line_of(1000), line_of(40_000)]), ("alone", [line_of(1000), line_of(40_000)])):
        result = simulate(Run(recorded(tmp_path / name, *lines), FleetSpec(1, ("h100-8b",), 512), "lbgr", "lru", 0))
        runs[name] = result, [s.done_s - s.arrival_s for s in result.served]
    result, (beside, after) = runs["gone"]
    assert (result.abandoned, result.failed, result.requests) == (1, 0, 3)
    assert beside > 1.001 * runs["alone"][1][0]
    assert after == pytest.approx(runs["alone"][1][1])
    assert result.busy_s[0] == pytest.approx(30 + after, abs=0.1)


def test_a_request_that_was_abandoned_is_answered_if_its_bound_is_reached_before(tmp_path: Path) -> None:
    gone = line_of(0, output_length=3, max_tokens=50, ending="timeout", latency_ms=30_000)
    result = simulate(Run(recorded(tmp_path / "t", gone), FleetSpec(1, ("h100-8b",), 512), "lbgr", "lru", 0))
    assert (result.abandoned, [s.output_tokens for s in result.served]) == (0, [50])


def test_a_client_leaves_while_its_request_waits(tmp_path: Path) -> None:
    lines = [line_of(n, ending="cancelled", latency_ms=5 + n) for n in range(40)]
    result = simulate(Run(recorded(tmp_path / "t", *lines), FleetSpec(2, ("l40-8b",), 512), "lbgr", "rlt_gix", 0))
    assert (result.abandoned, result.served, result.failed) == (40, [], 0)
    assert sum(result.busy_s) < 2  # not one prompt after another


def test_an_engine_fails_under_requests_that_are_abandoned(tmp_path: Path) -> None:
    lines = [line_of(100 * n, ending="cancelled", latency_ms=4000) for n in range(40)]
    fleet = FleetSpec(2, ("l40-8b",), 512, fail=((0, 2.0),))
    result = simulate(Run(recorded(tmp_path / "t", *lines), fleet, "lbgr", "lru", 0))
    assert result.served == []
    assert result.failed > 0
    assert result.abandoned + result.failed == 40


def test_many_engines() -> None:
    result = simulate(run_of(rate=200.0, requests=250, fleet=replace(L40, engines=256)))
    assert len(shares(result)) > 50


def test_progress() -> None:
    parts: list[float] = []
    simulate(run_of(requests=600), parts.append)
    assert parts == [256 / 600, 512 / 600]
