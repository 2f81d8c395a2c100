import os
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from router.config import configure
from router.policies.base import RoutingContext, pick
from router.policies.consistent_hash import ConsistentHash, key_of, mix
from router.types import BlockKey, Candidate, EngineId, EngineInfo, EngineView, ParsedRequest, Prompt
from tests.support.virtual_fleet import ask_for, prompt_of


def candidates(*loads: int) -> list[Candidate]:
    return [Candidate(EngineView(EngineId(f"e{n}"), EngineInfo(), load, 0), 0.0) for n, load in enumerate(loads)]


def home(request: ParsedRequest, *loads: int, **options: float) -> str:
    policy = ConsistentHash(configure(**options).policies.consistent_hash)
    return pick(policy.choose(RoutingContext(request, 64.0, 64.0, 0.0, 0.0), candidates(*loads)), 0.0).engine


def named(session: str) -> ParsedRequest:
    return replace(ask_for(1), session=session)


def test_the_key_is_the_session_or_else_the_first_two_blocks() -> None:
    assert key_of(named("a")) == key_of(replace(ask_for(7, 8, 9), session="a"))
    assert key_of(named("a")) != key_of(named("b"))
    assert key_of(ask_for(1, 2, 3)) == key_of(ask_for(1, 2, 4)) == 2
    assert key_of(ask_for(1)) == 1
    short, other = (Prompt(BlockKey(0), (), 64, 3, (1, 2, n), True) for n in (3, 4))
    assert key_of(replace(ask_for(), prompt=short)) == key_of(replace(ask_for(), prompt=short))
    assert key_of(replace(ask_for(), prompt=short)) != key_of(replace(ask_for(), prompt=other))


def test_mix_is_that_of_splitmix64() -> None:
    """First output of SplitMix64 seeded with 0: the finisher of its increment."""
    assert mix(0x9E3779B97F4A7C15) == 0xE220A8397B1DCDAF
    assert len({mix(n) for n in range(1000)}) == 1000


def test_keys_spread_evenly_over_idle_engines() -> None:
    homes = Counter(home(named(f"user {n}"), 0, 0, 0, 0) for n in range(4000))
    assert all(900 < count < 1100 for count in homes.values())


def test_the_home_is_the_same_in_every_process() -> None:
    code = "import test_consistent_hash as t; print(*[t.home(t.named(name), 0, 0, 0, 0) for name in 'abcdef'])"
    env = {"PYTHONPATH": os.pathsep.join(sys.path), "PYTHONHASHSEED": "7"}
    found = subprocess.run([sys.executable, "-c", code], env=env, cwd=Path(__file__).parent, capture_output=True)
    assert found.stdout.decode().split() == [home(named(name), 0, 0, 0, 0) for name in "abcdef"], found.stderr


@pytest.mark.parametrize("count", [2, 5, 16])
def test_an_engine_that_joins_takes_its_share_and_nothing_else_moves(count: int) -> None:
    before = [home(named(f"user {n}"), *[0] * count) for n in range(1000)]
    after = [home(named(f"user {n}"), *[0] * (count + 1)) for n in range(1000)]
    moved = [new for old, new in zip(before, after, strict=True) if old != new]
    assert set(moved) == {f"e{count}"}
    assert len(moved) == pytest.approx(1000 / (count + 1), rel=0.3)


def test_an_engine_that_leaves_hands_on_its_own_keys_alone() -> None:
    policy = ConsistentHash()
    everyone = candidates(0, 0, 0, 0, 0)
    for n in range(500):
        routing = RoutingContext(named(f"user {n}"), 64.0, 64.0, 0.0, 0.0)
        before = pick(policy.choose(routing, everyone), 0.0).engine
        after = pick(policy.choose(routing, [c for c in everyone if c.view.engine != "e2"]), 0.0).engine
        assert after == before or before == "e2"


def test_worked_example_of_the_bound() -> None:
    """Loads of 13 with this request, 1.25 times over 4 engines is 4.06: room for 5. At 10, 3.1: room for 4."""
    order = ranked(named("a"))
    assert home(named("a"), *placed(order, 4, 4, 3, 1)) == order[0]  # 4 < 5
    assert home(named("a"), *placed(order, 5, 3, 3, 1)) == order[1]
    assert home(named("a"), *placed(order, 4, 4, 1, 0)) == order[2]
    assert home(named("a"), *placed(order, 5, 3, 3, 1), consistent_hash_load_factor=3.0) == order[0]


def ranked(request: ParsedRequest) -> list[str]:
    """Four idle engines in the key's order."""
    scores = ConsistentHash().choose(RoutingContext(request, 64.0, 64.0, 0.0, 0.0), candidates(0, 0, 0, 0))
    return [score.engine for score in sorted(scores, key=lambda score: score.total)]


def placed(order: list[str], *loads: int) -> list[int]:
    """Loads by place in the order, as loads of e0, e1, ..."""
    return [load for _, load in sorted(zip(order, loads, strict=True))]


def test_no_engine_gets_more_than_its_room() -> None:
    loads = [0, 0, 0, 0]
    for n in range(400):
        request = replace(ask_for(1), prompt=prompt_of(n % 3))  # three keys for four engines
        chosen = int(home(request, *loads)[1:])
        loads[chosen] += 1
        assert loads[chosen] <= 1.25 * (n + 1) / 4 + 1
