"""The acceptance grid: its tables fit together, runs are kept and not repeated, figures follow from the kept runs."""

import json
from argparse import Namespace
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks.routing import acceptance
from benchmarks.routing.acceptance_grid import (
    AGGREGATES,
    CHECKS,
    ENTRANTS,
    ROUTED_SCENES,
    SCENES,
    Aggregate,
    Check,
    Scene,
)
from benchmarks.routing.acceptance_store import RunStore

SEEDS = [0, 1]
OpenStore = Callable[..., RunStore]


@pytest.fixture
def store_at(tmp_path: Path) -> OpenStore:
    """Opens the same file at every call, for the given scenes."""
    return lambda *scenes: RunStore(tmp_path / "runs.json", scenes)


def scene_of(name: str, **changes: Any) -> Scene:
    return replace(next(scene for scene in SCENES if scene.name == name), **changes)


def fill(store: RunStore, scene: str, name: str, means: Sequence[float]) -> None:
    label = ENTRANTS[name].label
    for seed, mean_s in enumerate(means):
        seconds = dict.fromkeys(("mean_s", "p95_s", "p99_s", "ttft_mean_s"), mean_s)
        store.add((scene, label, seed), {**seconds, "throughput_rps": 1 / mean_s, "hit_error": mean_s / 100})


def printed(store: RunStore, scene: Scene, **flags: Any) -> list[str]:
    judge = acceptance.Judge(store, [0], {})
    args = Namespace(**({"main": True, "show": None, "trace": "", "jobs": "1"} | flags))
    return [line for line, _ in acceptance.lines_of([scene], judge, store, [0], args, lambda _parts: None)]


def test_tables_name_only_what_there_is() -> None:
    scenes = {scene.name for scene in SCENES}
    assert {check.scene for check in CHECKS} <= scenes
    assert {scene for aggregate in AGGREGATES for scene in aggregate.scenes} <= scenes
    compared: list[Check | Aggregate] = [*CHECKS, *AGGREGATES]
    entrants = {name for each in compared for name in (each.mine, *each.others)}
    assert entrants <= set(ENTRANTS)
    assert len({entrant.label for entrant in ENTRANTS.values()}) == len(ENTRANTS)
    assert len(ROUTED_SCENES) == 27


def test_every_scene_can_be_built(tmp_path: Path) -> None:
    trace = tmp_path / "trace.jsonl"
    lines = ({"timestamp": 9 * i, "input_length": 600, "output_length": 2, "hash_ids": [i, -i]} for i in range(9000))
    trace.write_text("\n".join(map(json.dumps, lines)))
    for scene in SCENES:
        run = acceptance.build(scene, ENTRANTS["lbgr"], 1, str(trace))
        assert run.traffic.rate == pytest.approx(scene.rate)
        assert run.fleet.engines == scene.engines


def test_a_check_divides_the_means_and_shows_the_range_of_seeds(store_at: OpenStore) -> None:
    store = store_at()
    fill(store, "gsp 7", "lbgr", [1.0, 3.0])
    fill(store, "gsp 7", "lmetric", [2.0, 3.0])
    fill(store, "gsp 7", "preble", [4.0, 2.0])
    judge = acceptance.Judge(store, SEEDS, {})

    def line(bound: float, others: tuple[str, ...], **more: Any) -> str:
        return judge.check(Check("routing", "gsp 7", "lbgr", others, bound, **more))

    assert line(0.8, ("lmetric",)).endswith("<= 0.8       0.8 [0.5-1]  ok")
    assert line(0.79, ("lmetric", "preble")).endswith("0.8 [0.5-1]  MISSED")
    assert line(1.5, ("preble",), column="throughput_rps", least=True).endswith(" [0.6667-4]  ok")
    assert line(0.01, (), column="hit_error").endswith("0.02 [0.01-0.03]  MISSED")
    assert line(1.0, ("smetric",)).endswith("not run")
    assert judge.missed == 2


def test_an_aggregate_takes_the_best_baseline_of_each_scene(store_at: OpenStore) -> None:
    store = store_at()
    for scene, means in {"gsp 7": (1.0, 2.0, 4.0), "gsp 11": (2.0, 8.0, 1.0)}.items():
        for name, mean_s in zip(("lbgr", "lmetric", "preble"), means, strict=True):
            fill(store, scene, name, [mean_s])
    judge = acceptance.Judge(store, [0], {})
    aggregate = Aggregate("routing", ("gsp 7", "gsp 11", "hot 11"), "lbgr", ("lmetric", "preble"), "mean_s", 1.0)
    assert judge.aggregate(aggregate).endswith("1 (2 of 3 scenes, gsp 11: 2)  ok")  # sqrt(1/2 * 2/1)
    assert judge.aggregate(replace(aggregate, worst=True)).endswith("2 (2 of 3 scenes, gsp 11: 2)  MISSED")


def test_options_of_lbgr_make_other_runs(store_at: OpenStore) -> None:
    judge = acceptance.Judge(store_at(), [0], {"lbgr_imposed_decode": 0.5})
    assert judge.entrant("joint").label == "lbgr+rlt_gix lbgr_imposed_decode=0.5"
    assert judge.entrant("preble") == ENTRANTS["preble"]


def test_runs_are_kept_and_only_what_is_missing_runs(store_at: OpenStore) -> None:
    scene = scene_of("gsp 7", requests=150)
    store = store_at(scene)
    first = printed(store, scene)
    assert not any("not run" in line for line in first[:4])
    store.save()
    again = store_at(scene)
    again.forget("preble*")
    fill(again, scene.name, "lmetric", [1e9])  # stays, for it does not run again
    vs_lmetric, *rest = printed(again, scene)
    assert float(vs_lmetric.split()[-3]) < 1e-6
    assert rest[:3] == first[1:4]
    assert printed(store_at(scene), scene, show="runs.json") == first


def test_runs_of_a_scene_that_changed_are_forgotten(store_at: OpenStore) -> None:
    scene = scene_of("gsp 7")
    store = store_at(scene)
    fill(store, scene.name, "lbgr", [1.0])
    store.save()
    assert store_at(scene).values(scene.name, "lbgr+lru", [0]) is not None
    assert store_at(replace(scene, rate=8)).values(scene.name, "lbgr+lru", [0]) is None


def test_rows_of_a_trace_are_skipped_with_a_sentence(store_at: OpenStore) -> None:
    scene = scene_of("trace x4 2.0")
    assert "--trace" in printed(store_at(scene), scene)[0]
