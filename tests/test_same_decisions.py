"""The gateway and the simulator decide alike.

Traffic is played through the real gateway, which records it. The simulator replays the recording and must make the same
decisions, equal to the last bit in every term of every engine.
"""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import pytest

from router.sim.fleet.scenario import FleetSpec, Run
from router.sim.fleet.simulation import simulate
from router.sim.fleet.traffic import Workload, replay
from router.sim.trace import TraceFile
from router.types import Decision, Ending
from tests.support.paced_stage import ClientPlan, RecordingRouter, staged

BLOCK = 32
FLEET = FleetSpec(4, ("l40-8b",), BLOCK, cache_tokens=9_000)
REQUESTS = 240
POLICIES = ["lbgr", "lmetric", "cache_aware"]
ORDERS = ["lru", "rlt_gix"]

Facts = tuple[object, ...]


def on_grid(time_s: float) -> float:
    """The time rounded to what a recording, which counts whole microseconds, gives back to the bit."""
    return round(time_s * 1e3, 3) / 1e3


def traffic(seed: int = 1, *, rate: float = 16.0, groups: int = 10) -> list[ClientPlan]:
    """Prompts with a shared beginning and an end of their own, both of any length. A quarter of them is not streamed,
    every third has a session, and of one in twelve the client leaves."""
    rng, now, token = random.Random(seed), 0.0, 0
    heads = [tuple(range(10_000 * (n + 1), 10_000 * (n + 1) + rng.randint(150, 1200))) for n in range(groups)]
    plans = []
    for number in range(REQUESTS):
        token += 20_000
        own, output = rng.randint(1, 900), rng.choice([1, 2, rng.randint(3, 120)])
        leaves = number % 12 == 5
        plans.append(
            ClientPlan(
                at_s=now,
                prompt=(*rng.choice(heads), *range(10**7 + token, 10**7 + token + own)),
                reply=(7,) if leaves else tuple(range(10**9 + token, 10**9 + token + output)),
                stream=leaves or rng.random() < 0.75,
                max_tokens=2000 if leaves else 2 * output,
                session=f"client-{number % 5}" if number % 3 == 0 else None,
                leaves_after_s=on_grid(rng.uniform(0.01, 4.0)) if leaves else None,
            )
        )
        now = on_grid(now + rng.expovariate(rate))
    return plans


async def decide_live(run: Run, path: Path, *, deviate_at: int | None = None) -> tuple[RecordingRouter, Run]:
    """Return the gateway's router, and the run that replays what the gateway recorded."""
    async with staged(run, deviate_at=deviate_at, record=str(path)) as (stage, router):
        await stage.play(traffic())
    file = TraceFile(str(path))
    return router, replace(run, traffic=replay(file, skip=0, requests=None, rate=None, scale=1.0, spread=False))


def decide_simulated(run: Run) -> list[Facts]:
    decisions: list[Decision] = []
    simulate(run, on_decision=decisions.append)
    return [facts(decision) for decision in decisions]


def facts(d: Decision) -> Facts:
    """Everything in a decision except names and keys, which a recording holds as hashes."""
    prompt = len(d.request.prompt.keys), d.request.prompt.units
    shape = d.request.stream, d.request.max_tokens, d.request.session is not None
    where = d.engine, d.policy, d.reason, d.fallback, d.tried, d.booking, d.dispatched_s
    expected = d.predicted_s, d.prompt_tokens, d.hit_tokens, d.output_tokens
    return *where, *prompt, *shape, *expected, d.expectation.blocks, d.scores, d.shadows


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("policy", POLICIES)
async def test_same_decisions(tmp_path: Path, policy: str, order: str) -> None:
    run = Run(Workload("gsp", 1.0, 1), FLEET, policy, order, seed=3)
    router, again = await decide_live(run, tmp_path / "trace.jsonl.gz")
    live, simulated = [facts(decision) for decision in router.decisions], decide_simulated(again)
    assert len(live) == REQUESTS
    for number, (one, other) in enumerate(zip(live, simulated, strict=True)):
        assert one == other, f"decision {number}"
    # The traffic leaves the policy something to decide.
    decision_log = router.newest_decisions(REQUESTS)
    endings = [entry.result.ending for entry in decision_log if entry.result is not None]
    assert len(endings) == REQUESTS
    assert endings.count(Ending.OK) == REQUESTS - 20
    assert endings.count(Ending.CANCELLED) == 20
    assert len({decision.engine for decision in router.decisions}) == FLEET.engines
    assert sum(decision.hit_tokens > 0 for decision in router.decisions) > REQUESTS / 2


async def test_one_other_decision_is_noticed(tmp_path: Path) -> None:
    deviate_at = 100
    run = Run(Workload("gsp", 1.0, 1), FLEET, "lmetric", "rlt_gix", seed=3)
    router, again = await decide_live(run, tmp_path / "trace.jsonl", deviate_at=deviate_at)
    live, simulated = [facts(decision) for decision in router.decisions], decide_simulated(again)
    assert live[:deviate_at] == simulated[:deviate_at]
    assert router.decisions[deviate_at].engine != simulated[deviate_at][0]


async def test_engines_that_forget_in_another_order_are_noticed(tmp_path: Path) -> None:
    run = Run(Workload("gsp", 1.0, 1), FLEET, "lbgr", "rlt_gix", seed=3)
    router, again = await decide_live(run, tmp_path / "trace.jsonl")
    live = [facts(decision) for decision in router.decisions]
    assert decide_simulated(again) == live
    assert decide_simulated(replace(again, order="rlt")) != live
    assert decide_simulated(replace(again, seed=4)) != live
    assert decide_simulated(replace(again, options={"lbgr_duplication_weight_learned": 2.999})) != live
