from __future__ import annotations

import asyncio
import json
import math
import os
import random
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from router.core.learned_state import LearnedState
from router.core.router import Router
from router.errors import ConfigError, SnapshotError
from router.gateway.snapshot import VERSION, Snapshot
from router.saved_state import SavedState
from router.types import EngineId, EngineInfo, Scores
from tests.support.gateway_server import served
from tests.support.virtual_fleet import VirtualEngine, ask_for, router_with, shared_prefixes, simulate

URLS = {EngineId(f"e{n}"): f"http://10.0.0.{n}:8000" for n in range(3)}
LATER_S = 40.0


def taught(seed: int = 1, *, stream: bool = True) -> Router:
    """A router that has served a fleet of unequal engines of two orders, and is idle now."""
    router = router_with(3, lbgr_cold_samples=8)
    for n, order in enumerate(("lru", "rlt", "rlt_gix")):
        router.set_info(EngineId(f"e{n}"), EngineInfo(("m",), order, 16, 1000))
    engines = [VirtualEngine(slowness=factor) for factor in (1.0, 2.0, 4.0)]  # so that no costs tie
    simulate(router, engines, shared_prefixes(seed, rate=4, count=150, stream=stream))
    return router


def at(owner: Router | LearnedState, path: Path, now: float = LATER_S, urls: dict[EngineId, str] = URLS) -> Snapshot:
    """The snapshot, in the file `path` and at the time `now`, of what a router has learned."""
    learned = owner.learned if isinstance(owner, Router) else owner
    return Snapshot(str(path), learned, urls, clock=lambda: now, wall_clock=lambda: 1e9 + now)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "learned.json"
    at(taught(), path).save()
    return path


def dumped(router: Router, now: float = LATER_S) -> dict[str, Any]:
    """What the router has learned, which is JSON."""
    return dict(router.learned.dump(now))


def choices(router: Router) -> list[tuple[EngineId, Scores, str, float]]:
    """What the router decides for prompts that it has never seen, under a load that grows."""
    found = []
    for n in range(60):
        request = ask_for(*range(10**7 + 50 * n, 10**7 + 50 * n + 1 + n % 20), stream=n % 2 == 0)
        decision = router.route(request, LATER_S + n * 0.05)
        found.append((decision.engine, decision.scores, decision.reason, decision.output_tokens))
    return found


@pytest.mark.parametrize("stream", [True, False])
def test_a_restart_changes_no_decision(tmp_path: Path, stream: bool) -> None:
    path, before, after = tmp_path / "learned.json", taught(stream=stream), router_with(3, lbgr_cold_samples=8)
    for engine in URLS:
        after.set_info(engine, before.status().engines[engine].info)
    at(before, path).save()
    assert at(after, path).start()
    assert dumped(after) == dumped(before)
    known, cold = choices(before), choices(router_with(3))
    assert choices(after) == known != cold
    assert all(reason == "lowest_cost" for _, _, reason, _ in known)


def test_engines_are_found_by_their_urls_and_time_has_gone_on(saved: Path) -> None:
    swapped = {EngineId("e0"): URLS[EngineId("e2")], EngineId("e1"): "http://new:1"}
    router = router_with(2)
    assert at(router, saved, LATER_S + 5, swapped).start()
    scales = json.loads(saved.read_text())["learned"]["policies"]["lbgr"]["engine_speed"]["engines"]
    found = dumped(router, LATER_S + 5)["policies"]["lbgr"]["engine_speed"]["engines"]
    assert set(found) == {"e0"}
    assert found["e0"]["slowness"] == pytest.approx(scales["e2"]["slowness"])
    assert found["e0"]["idle_s"] == pytest.approx(scales["e2"]["idle_s"] + 5)


def test_curves_wait_for_the_engines_to_tell_their_order(saved: Path) -> None:
    router = router_with(1)
    assert at(router, saved).start()
    assert set(dumped(router, 0.0)["survival_curves"]) == {"rlt", "rlt_gix"}


def learned(document: dict[str, Any], *keys: str) -> Any:
    found: Any = document["learned"]
    for key in keys:
        found = found[key]
    return found


LBGR = ("policies", "lbgr")
DAMAGES: dict[str, Callable[[dict[str, Any]], object]] = {
    "version": lambda d: d.update(leafcutter_snapshot=VERSION + 1),
    "no version": lambda d: d.pop("leafcutter_snapshot"),
    "no time": lambda d: d.pop("saved_unix_s"),
    "engines": lambda d: d.update(engines=["e0"]),
    "url": lambda d: d["engines"].update(e0=3),
    "coefficients": lambda d: learned(d, *LBGR, "latency").update(coefficients=["a", "b"]),
    "shape": lambda d: learned(d, *LBGR, "latency", "regression")["a"].pop(),
    "row": lambda d: learned(d, *LBGR, "latency", "regression")["a"][2].append(1.0),
    "nan": lambda d: learned(d, *LBGR, "latency", "regression")["v"].__setitem__(0, float("nan")),
    "huge": lambda d: learned(d, *LBGR, "latency", "regression")["v"].__setitem__(0, 10**400),
    "text": lambda d: learned(d, *LBGR, "duplication").update(repeated="0.5"),
    "truth": lambda d: learned(d, *LBGR, "duplication").update(queued=True),
    "part": lambda d: learned(d, *LBGR, "engine_speed").update(samples=1.5),
    "alarm": lambda d: learned(d, *LBGR, "error_alarm").update(alarm=1),
    "errors": lambda d: learned(d, *LBGR, "error_alarm").update(errors=[0.1] * 65),
    "negative": lambda d: learned(d, *LBGR, "engine_speed", "engines", "e0").update(measured_ms=-1.0),
    "no policies": lambda d: learned(d).pop("policies"),
    "classes": lambda d: learned(d)["output_lengths"].append(["m", 1.0]),
    "name": lambda d: learned(d)["output_lengths"].append([{}, 1.0, 1.0]),
    "ratios": lambda d: learned(d).update(token_ratios=[["m", 1.0, 1.0]] * 5000),
    "bins": lambda d: learned(d, "survival_curves", "rlt_gix")["tried"].pop(),
    "new order": lambda d: learned(d, "survival_curves").update(zz={}),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_what_does_not_fit_is_refused_whole_with_one_sentence(
    saved: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    document = json.loads(saved.read_text())
    DAMAGES[damage](document)
    saved.write_text(json.dumps(document))
    router = taught(2)
    before = dumped(router)
    with pytest.raises(SnapshotError, match="expected"):
        at(router, saved).restore()
    assert dumped(router) == before
    assert not at(router, saved).start()
    (record,) = [r for r in caplog.records if r.levelname == "WARNING"]
    assert record.message.startswith(f"the snapshot {saved} is refused, starting cold: ")
    assert "\n" not in record.message


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "[" * 100_000, "\x00"])
def test_a_torn_file_is_refused(saved: Path, text: str) -> None:
    saved.write_text(text)
    with pytest.raises(SnapshotError):
        at(router_with(3), saved).restore()


def test_a_file_cut_anywhere_is_refused(saved: Path) -> None:
    whole, router, rng = saved.read_bytes(), router_with(3), random.Random(3)
    for _ in range(40):
        saved.write_bytes(whole[: rng.randrange(len(whole))])
        assert not at(router, saved).start()
    saved.write_bytes(b"\xff" + whole)
    assert not at(router, saved).start()


def test_no_file_yet_is_no_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert not at(router_with(3), tmp_path / "new.json").start()
    assert not [r for r in caplog.records if r.levelno >= 30]


class Sick(LearnedState):
    """What was learned is no number while it is sick."""

    def __init__(self, learned: LearnedState) -> None:
        self.learned, self.sick = learned, True

    def dump(self, now: float) -> SavedState:
        return {"output_lengths": math.nan} if self.sick else self.learned.dump(now)


def test_a_save_that_fails_leaves_the_file_before_and_nothing_else(saved: Path) -> None:
    whole = saved.read_bytes()
    with pytest.raises(ValueError, match="not JSON compliant"):
        at(Sick(router_with(1).learned), saved).save()
    assert saved.read_bytes() == whole
    assert stat.S_IMODE(saved.stat().st_mode) == 0o600
    snapshot = at(taught(), saved)
    saved.unlink()
    saved.mkdir()
    with pytest.raises(IsADirectoryError):
        snapshot.save()
    assert os.listdir(saved.parent) == [saved.name]


def test_a_folder_that_cannot_be_written_is_refused_at_the_start(tmp_path: Path) -> None:
    for path in (tmp_path / "no" / "file", tmp_path):
        with pytest.raises(ConfigError, match="option 'snapshot'"):
            at(router_with(1), path)


def test_it_is_saved_again_and_again_and_a_failure_stops_nothing(saved: Path, caplog: pytest.LogCaptureFixture) -> None:
    learned = Sick(router_with(1).learned)
    learned.sick = False
    snapshot = at(learned, saved)

    async def run() -> None:
        async with snapshot.running(0.01):
            for _ in range(2):
                saved.unlink()
                while not saved.exists():
                    await asyncio.sleep(0.005)
            learned.sick = True
            while "could not be saved" not in caplog.text:
                await asyncio.sleep(0.005)
            learned.sick = False
            saved.unlink()
        assert saved.exists()  # at the end

    asyncio.run(asyncio.wait_for(run(), 30))
    assert at(router_with(3), saved).start()


def test_the_gateway_saves_at_its_end_and_restores_at_its_start(tmp_path: Path) -> None:
    path = tmp_path / "learned.json"

    async def samples(requests: int) -> list[Any]:
        async with served(policy="lbgr", snapshot=str(path)) as gateway:
            found = [gateway.router.describe(EngineId("engine-0"))["samples"]]
            for _ in range(requests):
                assert (await gateway.post(stream=True)).status_code == 200
            await gateway.ended("ok", requests)
            return [*found, gateway.router.describe(EngineId("engine-0"))["samples"]]

    async def twice() -> None:
        first = await samples(5)
        assert first[0] == 0 < first[1]
        # The engines of this test listen on another port each time; what all engines share is kept.
        assert (await samples(1))[0] == first[1]

    asyncio.run(asyncio.wait_for(twice(), 60))
