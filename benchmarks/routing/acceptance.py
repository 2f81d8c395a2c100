"""Every row of the study's acceptance in the simulator: the bound, the figure, and whether it is good enough.

    .venv/bin/python -m benchmarks.routing.acceptance --trace TRACE.jsonl --out benchmarks/results/acceptance_sim.json
    .venv/bin/python -m benchmarks.routing.acceptance --show benchmarks/results/acceptance_sim.json

The rows are in acceptance_grid.py. Figures are means over the seeds, with the range of single seeds in brackets. Every
run is kept in the file, with everything it was run with, and a second call runs only what is missing there; after a
change of the code, --fresh runs all of them anew (--fresh 'lbgr*' those of one policy). The runs that a single row
needs and the likely best baselines come first. The rest follow, which only the last lines, over all scenes, need;
--main leaves them out.

Rows with a trace need its file: conversation_trace.jsonl of kvcache-ai/Mooncake (FAST'25), which may be gzipped.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, replace
from fnmatch import fnmatch
from functools import cache, partial
from itertools import islice
from pathlib import Path
from statistics import fmean

from benchmarks.report import markdown_table
from benchmarks.routing.acceptance_grid import (
    AGGREGATES,
    CHECKS,
    CONTENDERS,
    ENTRANTS,
    ROUTED_SCENES,
    SCENES,
    TRACE,
    Aggregate,
    Check,
    Entrant,
    Scene,
)
from benchmarks.routing.acceptance_store import Key, RunStore, Values
from router.cli.flags import integer, seeds
from router.cli.progress import show
from router.cli.simulate import BLOCK, options_set
from router.errors import LeafcutterError
from router.sim.fleet.result import WARM_UP, summarize
from router.sim.fleet.scenario import FleetSpec, Run, Slowdown
from router.sim.fleet.simulation import simulate
from router.sim.fleet.traffic import TRACE_BLOCK, Replay, Workload, replay
from router.sim.parallel import Watch, measure_all
from router.sim.trace import TraceFile
from router.types import Decision

LABELS = 6  # the first fields of a summary, workload to seed, which a run's key holds as well


# --- running ----------------------------------------------------------------------------------------------------------


@cache
def window(path: str, scene: Scene, seed: int) -> Replay:
    """The part of the trace that belongs to a seed. Raises TraceError."""
    file = TraceFile(path)
    skip = scene.window_step * seed % max(1, length(file) - scene.requests)
    return replay(file, skip=skip, requests=scene.requests, rate=scene.rate, scale=1.0, spread=True)


@cache
def length(file: TraceFile) -> int:
    return sum(1 for _ in file.open(0))


def build(scene: Scene, entrant: Entrant, seed: int, trace: str) -> Run:
    """The simulation of one cell. Raises TraceError."""
    of_trace = scene.traffic == TRACE
    traffic = window(trace, scene, seed) if of_trace else Workload(scene.traffic, scene.rate, scene.requests)
    fleet = FleetSpec(
        scene.engines,
        (scene.hardware,),
        TRACE_BLOCK if of_trace else BLOCK,
        cache_tokens=scene.cache_tokens,
        reported_cache_ratio=entrant.told,
        unstreamed=entrant.unstreamed,
        slow=((0, scene.slow),) if scene.slow != 1.0 else (),
        degrade=(Slowdown(0, *scene.degrade),) if scene.degrade else (),
    )
    return Run(traffic, fleet, entrant.policy, entrant.order, seed, entrant.options)


def observe(run: Run, report: Callable[[float], None]) -> Values:
    """What `simulate --json` reports, to six digits, and hit_error, the mean of |expected - cached| / prompt tokens."""
    expected: dict[str, float] = {}

    def watch(decision: Decision) -> None:
        expected[decision.request.request_id] = decision.hit_tokens

    played = simulate(run, report, watch)
    start = WARM_UP * played.requests
    errors = [
        abs(expected[str(served.number)] - served.cached_tokens) / served.prompt_tokens
        for served in played.served
        if served.number >= start
    ]
    values = dict(islice(asdict(summarize(run, played)).items(), LABELS, None), hit_error=fmean(errors))
    return {name: float(f"{value:.6g}") for name, value in values.items()}


# --- judging ----------------------------------------------------------------------------------------------------------


class Judge:
    """Holds the stored runs against their bounds, a line each. `options`: of lbgr, beside those of the entrants."""

    def __init__(self, store: RunStore, numbers: Sequence[int], options: Mapping[str, object]) -> None:
        self._store, self._seeds, self._options = store, numbers, options
        self.missed = 0

    def entrant(self, name: str) -> Entrant:
        entrant = ENTRANTS[name]
        return replace(entrant, options={**entrant.options, **self._options}) if entrant.policy == "lbgr" else entrant

    def check(self, check: Check) -> str:
        mine = self._column(check.scene, check.mine, check.column)
        others = [self._column(check.scene, other, check.column) for other in check.others]
        line = f"{check.source:<8}{check.scene:<17}{title(check.mine, check.others, check.column):<52}"
        bound = f"{'>=' if check.least else '<='} {check.bound:<6g}"
        if mine is None or None in others:
            return f"{line}{bound} not run"
        best = (max if check.least else min)((other for other in others if other), key=fmean, default=[1.0] * len(mine))
        figure = fmean(mine) / fmean(best)
        each = [a / b for a, b in zip(mine, best, strict=True)]
        enough = figure >= check.bound if check.least else figure <= check.bound
        return f"{line}{bound} {figure:6.4g} [{min(each):.4g}-{max(each):.4g}]  {self._verdict(enough)}"

    def aggregate(self, aggregate: Aggregate) -> str:
        quotients = dict(self._quotients(aggregate))
        line = f"{aggregate.source:<8}{'worst' if aggregate.worst else 'geomean':<17}"
        line += f"{title(aggregate.mine, aggregate.others, aggregate.column):<52}"
        bound = "told     " if aggregate.bound is None else f"<= {aggregate.bound:<6g}"
        if not quotients:
            return f"{line}{bound} not run"
        worst = max(quotients, key=lambda scene: quotients[scene])
        figure = quotients[worst] if aggregate.worst else math.exp(fmean(map(math.log, quotients.values())))
        verdict = "" if aggregate.bound is None else self._verdict(figure <= aggregate.bound)
        share = f"{len(quotients)} of {len(aggregate.scenes)} scenes, {worst}: {quotients[worst]:.4g}"
        return f"{line}{bound} {figure:6.4g} ({share})  {verdict}"

    def table(self, column: str) -> str:
        """Means over the seeds of lbgr, joint and the likely best baselines, a line for each scene."""
        names = ("lbgr", "joint", *CONTENDERS)
        rows: list[list[str]] = []
        for scene in SCENES:
            found = {name: values for name in names if (values := self._column(scene.name, name, column))}
            if found:
                means = {name: f"{fmean(values):.3f}" for name, values in found.items()}
                rows.append([scene.name, *(means.get(name, "") for name in names)])
        return markdown_table(["", *names], rows)

    def _quotients(self, aggregate: Aggregate) -> Iterator[tuple[str, float]]:
        for scene in aggregate.scenes:
            mine = self._column(scene, aggregate.mine, aggregate.column)
            rivals = [other for other in aggregate.others if other != aggregate.mine]
            others = [self._column(scene, other, aggregate.column) for other in rivals]
            means = [fmean(other) for other in others if other]
            if mine and means:
                yield scene, fmean(mine) / min(means)

    def _column(self, scene: str, name: str, column: str) -> list[float] | None:
        found = self._store.values(scene, self.entrant(name).label, self._seeds)
        return [values[column] for values in found] if found else None

    def _verdict(self, enough: bool) -> str:
        self.missed += not enough
        return "ok" if enough else "MISSED"


def title(mine: str, others: Sequence[str], column: str) -> str:
    """What is compared."""
    best = "the best baseline" if len(others) > 3 else " | ".join(others)
    return f"{mine} / {best}, {column}" if others else f"{mine}, {column}"


# --- the command ------------------------------------------------------------------------------------------------------


def plan(scenes: Sequence[Scene], *, main: bool) -> Iterator[tuple[Scene, list[str]]]:
    """Which entrants run, in this order: first those of the checks and the contenders, then those of the aggregates."""
    for scene in scenes:
        found = [name for check in CHECKS if check.scene == scene.name for name in (check.mine, *check.others)]
        yield scene, list(dict.fromkeys([*found, *(CONTENDERS if scene.name in ROUTED_SCENES else ())]))
    for scene in scenes if not main else ():
        needing = [aggregate for aggregate in AGGREGATES if scene.name in aggregate.scenes]
        yield scene, list(dict.fromkeys(name for aggregate in needing for name in (aggregate.mine, *aggregate.others)))


def lines_of(
    scenes: Sequence[Scene],
    judge: Judge,
    store: RunStore,
    numbers: Sequence[int],
    args: argparse.Namespace,
    watch: Watch,
) -> Generator[tuple[str, None], None, None]:
    """The lines to print, each as soon as the runs that it needs are done."""
    reported, planned = set[str](), set[Key]()
    batches: list[tuple[Scene, list[Key], list[Run]]] = []
    for scene, names in plan(scenes, main=args.main):
        can = not args.show and (scene.traffic != TRACE or args.trace)
        entrants = [judge.entrant(name) for name in names] if can else []
        todo = [(e, (scene.name, e.label, seed)) for e in entrants for seed in numbers]
        todo = [(e, key) for e, key in todo if key not in store and key not in planned]
        planned |= {key for _, key in todo}
        batches.append((scene, [key for _, key in todo], [build(scene, e, key[2], args.trace) for e, key in todo]))
    if any(scene.traffic == TRACE for scene in scenes) and not (args.trace or args.show):
        yield "the rows of the conversation trace do not run without its file (--trace)", None
    runs = [run for _, _, some in batches for run in some]
    with closing(measure_all(observe, runs, watch, integer("jobs", args.jobs) if runs else 1)) as results:
        for scene, keys, _ in batches:
            for key in keys:
                store.add(key, next(results))
            if scene.name not in reported:
                reported.add(scene.name)
                yield from ((judge.check(check), None) for check in CHECKS if check.scene == scene.name)
    yield from ((judge.aggregate(aggregate), None) for aggregate in AGGREGATES)
    yield f"{judge.missed} missed; the runs come from {store.versions()} version(s) of the sources", None


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument(
        "--seeds", metavar="N|A,B,...", default="3", help="N: seeds 0 to N-1; a list: those; default: 3"
    )
    parser.add_argument("--rows", metavar="GLOB", default="*", help="scenes, such as 'gsp*'; default: all")
    parser.add_argument("--trace", metavar="FILE", default="", help="Mooncake's conversation trace")
    parser.add_argument("--set", metavar="NAME=VALUE", action="append", default=[], help="an option of lbgr's")
    parser.add_argument(
        "--main", action="store_true", help="only what a single row needs and the likely best baselines"
    )
    parser.add_argument("--fresh", metavar="GLOB", nargs="?", const="*", help="repeat the stored runs of such entrants")
    parser.add_argument("--out", metavar="FILE", type=Path, help="JSON; keeps the runs; those in it are not repeated")
    parser.add_argument("--show", metavar="FILE", type=Path, help="only print what is in such a file")
    parser.add_argument("--table", metavar="COLUMN", help="of --show: one column of all runs, such as mean_s or p99_s")
    parser.add_argument("--jobs", metavar="N", default="1", help="processes; default: 1")
    args = parser.parse_args()
    store = RunStore(args.show or args.out, SCENES)
    try:
        if args.fresh:
            store.forget(args.fresh)
        numbers = seeds(args.seeds)
        judge = Judge(store, numbers, options_set(args.set))
        if args.show and args.table:
            print(judge.table(args.table))
            return 0
        scenes = [scene for scene in SCENES if fnmatch(scene.name, args.rows)]
        show(partial(lines_of, scenes, judge, store, numbers, args))
    except LeafcutterError as error:
        sys.exit(str(error))
    finally:
        if not args.show:
            store.save()
    return 1 if judge.missed else 0


if __name__ == "__main__":
    sys.exit(main())
