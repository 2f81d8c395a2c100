"""The gateway and the simulator decide alike: traffic is played through the real gateway and recorded by it, and the
simulator, which replays the recording, makes the same decisions, to the last bit of every engine's every term."""

import random
from dataclasses import replace

import pytest

from router.sim.fleet.scenario import FleetSpec, Run
from router.sim.fleet.simulation import simulate
from router.sim.fleet.traffic import Workload, replay
from router.sim.trace import TraceFile
from router.types import Ending
from tests.support.paced_stage import Asked, staged

BLOCK = 32
FLEET = FleetSpec(4, ("l40-8b",), BLOCK, cache_tokens=9_000)
REQUESTS = 240
POLICIES = ["lbgr", "lmetric", "cache_aware"]
ORDERS = ["lru", "rlt_gix"]


def on_grid(time_s):
    """A time that a recording, which counts whole microseconds, gives back to the bit."""
    return round(time_s * 1e3, 3) / 1e3


def traffic(seed=1, *, rate=16.0, groups=10):
    """Prompts of a shared beginning and an end of their own, of any length; a quarter is not streamed, every third has
    a session, one in twelve is left by its client."""
    rng, now, token = random.Random(seed), 0.0, 0
    heads = [tuple(range(10_000 * (n + 1), 10_000 * (n + 1) + rng.randint(150, 1200))) for n in range(groups)]
    asked = []
    for number in range(REQUESTS):
        token += 20_000
        own, output = rng.randint(1, 900), rng.choice([1, 2, rng.randint(3, 120)])
        left = number % 12 == 5
        asked.append(
            Asked(
                at_s=now,
                prompt=(*rng.choice(heads), *range(10**7 + token, 10**7 + token + own)),
                reply=(7,) if left else tuple(range(10**9 + token, 10**9 + token + output)),
                stream=left or rng.random() < 0.75,
                max_tokens=2000 if left else 2 * output,
                session=f"client-{number % 5}" if number % 3 == 0 else None,
                left_s=on_grid(rng.uniform(0.01, 4.0)) if left else None,
            )
        )
        now = on_grid(now + rng.expovariate(rate))
    return asked


async def decide_live(run, path, **changes):
    """(the gateway's router, the run that replays the recording of it)."""
    async with staged(run, record=str(path), **changes) as (stage, router):
        await stage.play(traffic())
    file = TraceFile(str(path))
    return router, replace(run, traffic=replay(file, skip=0, requests=None, rate=None, scale=1.0, spread=False))


def decide_simulated(run):
    decisions = []
    simulate(run, on_decision=decisions.append)
    return [facts(decision) for decision in decisions]


def facts(d):
    """All of a decision but names and keys, which are hashed in a recording."""
    prompt = len(d.request.prompt.keys), d.request.prompt.units
    shape = d.request.stream, d.request.max_tokens, d.request.session is not None
    where = d.engine, d.policy, d.reason, d.fallback, d.tried, d.booking, d.dispatched_s
    expected = d.predicted_s, d.prompt_tokens, d.hit_tokens, d.output_tokens
    return *where, *prompt, *shape, *expected, d.expectation.blocks, d.scores, d.shadows


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("policy", POLICIES)
async def test_same_decisions(tmp_path, policy, order):
    run = Run(Workload("gsp", 1.0, 1), FLEET, policy, order, seed=3)
    router, again = await decide_live(run, tmp_path / "trace.jsonl.gz")
    live, simulated = [facts(decision) for decision in router.decisions], decide_simulated(again)
    assert len(live) == REQUESTS
    for number, (one, other) in enumerate(zip(live, simulated, strict=True)):
        assert one == other, f"decision {number}"
    # The trace is one on which there is something to decide.
    decision_log = router.newest_decisions(REQUESTS)
    endings = [entry.result.ending for entry in decision_log]
    assert endings.count(Ending.OK) == REQUESTS - 20
    assert endings.count(Ending.CANCELLED) == 20
    assert len({decision.engine for decision in router.decisions}) == FLEET.engines
    assert sum(decision.hit_tokens > 0 for decision in router.decisions) > REQUESTS / 2


async def test_one_other_decision_is_noticed(tmp_path):
    swerve = 100
    run = Run(Workload("gsp", 1.0, 1), FLEET, "lmetric", "rlt_gix", seed=3)
    router, again = await decide_live(run, tmp_path / "trace.jsonl", swerve=swerve)
    live, simulated = [facts(decision) for decision in router.decisions], decide_simulated(again)
    assert live[:swerve] == simulated[:swerve]
    assert router.decisions[swerve].engine != simulated[swerve][0]


async def test_engines_that_forget_in_another_order_are_noticed(tmp_path):
    run = Run(Workload("gsp", 1.0, 1), FLEET, "lbgr", "rlt_gix", seed=3)
    router, again = await decide_live(run, tmp_path / "trace.jsonl")
    live = [facts(decision) for decision in router.decisions]
    assert decide_simulated(again) == live
    assert decide_simulated(replace(again, order="rlt")) != live
    assert decide_simulated(replace(again, seed=4)) != live
    assert decide_simulated(replace(again, options={"lbgr_duplication_weight_learned": 2.999})) != live
