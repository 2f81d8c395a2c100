"""Reruns the settings of the paper in simulation and prints its ratios beside ours.

The paper: Wu, Silwal and Zhang, "Randomization Boosts KV Caching, Learning Balances Query Load: A Joint Perspective"
(ICLR 2026, arXiv 2601.18999). Lengths, numbers, orders and rates are those of its authors' scripts (github.com/fzwark/
KVRouting: README, gsp.sh, multi_conv.sh, multi-turn.py, long.py): Llama-3.1-8B on 4 L40 at 12 requests a second unless
swept, 4 output tokens. Counted as their client counts: every request from the empty caches on, throughput up to the
last answer. `PUBLISHED` holds the figures that could be found, each with where.

What differs: `DIFFERENCES`. About 20 minutes of processor time; `--show FILE` prints a run's tables again.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from statistics import fmean, geometric_mean
from typing import Any

from benchmarks.report import markdown_table
from benchmarks.routing.paper_traffic import SCRIPTS, Scripted
from router.cli.flags import integer, names, seeds
from router.cli.progress import show
from router.sim.fleet.result import percentile
from router.sim.fleet.scenario import FleetSpec, Run
from router.sim.fleet.simulation import simulate
from router.sim.fleet.traffic import Traffic, Workload
from router.sim.parallel import Watch, measure_all

DIFFERENCES = """\
- Simulated vLLM engines (`l40-8b`: estimated, not measured; 150,000 cached tokens, blocks of 128) in place of SGLang
  0.4.6 on L40s, whose cache size is not published. The orders are those that run in our engines.
- Every policy asks our prefix index, which forgets as the engines do; the authors' trees grow to 2^24 characters.
- `cache_aware_046` has the options of the authors' launcher (match above .5, balance 32 / 1.0001); `cache_aware` those
  of later routers (.3, 64 / 1.5). GSP's prompts share their first half: exactly half, in `gsp`, is never above .5; in
  `gsp_text` halves differ by some characters, as random texts do, and about half of the prompts match.
- LBGR three times: `lbgr_paper`, the equations with the authors' 1 ms a character; `lbgr_alpha`, the equations with
  this hardware's 0.135 ms a token; `lbgr_code`, what the authors' router does (bias, forgetting .992). `lbgr`: ours.
- turns (for ShareGPT and UltraChat), documents (for LooGLE): lengths of the authors' scripts without the texts, see
  benchmarks/routing/paper_traffic.py. chat, longdoc: shapes of `leafcutter simulate`, with long answers and long
  documents."""

LAUNCHER = {  # of the authors' fork of SGLang 0.4.6
    "cache_threshold": 0.5,
    "balance_abs_threshold": 32,
    "balance_rel_threshold": 1.0001,
    "eviction_interval_secs": 60.0,
    "max_tree_size": 2**24,
}
ROUTERS: Mapping[str, tuple[str, Mapping[str, object]]] = {
    "random": ("random", {}),
    "cache_aware_046": ("cache_aware", LAUNCHER),
    "cache_aware": ("cache_aware", {}),
    "lbgr_paper": ("lbgr_paper", {}),
    "lbgr_alpha": ("lbgr_paper", {"lbgr_paper_miss_ms_per_token": 0.135}),
    "lbgr_code": ("lbgr_paper", {"lbgr_paper_residual": "bias", "lbgr_paper_forgetting": 0.992}),
    "lbgr": ("lbgr", {}),
}
REQUESTS = 4096  # 128 groups of 32 prompts
Cell = tuple[str, str]  # one of `ROUTERS`, an order
LBGR = ("lbgr_paper", "lbgr_alpha", "lbgr_code", "lbgr")
BASE, OURS, RLT = ("cache_aware_046", "lru"), ("lbgr", "rlt_gix"), ("lbgr", "rlt")
CELLS: tuple[Cell, ...] = (
    *(("random", "lru"), BASE, ("cache_aware_046", "rlt"), ("cache_aware", "lru")),
    *((router, order) for router in LBGR for order in ("lru", "rlt")),
    OURS,
)
SWEPT: tuple[Cell, ...] = (BASE, ("cache_aware", "lru"), ("lbgr_code", "rlt"), ("lbgr", "lru"), RLT, OURS)
ALONE: tuple[Cell, ...] = (("lbgr", "lru"), RLT, OURS)  # one engine: nothing to route


@dataclass(frozen=True)
class Setting:
    """One load on one fleet.

    rate: requests a second; of `chat`, sessions a second. cache_tokens: of an engine; None: as the hardware has it.
    """

    shape: str
    rate: float
    engines: int = 4
    cache_tokens: int | None = None
    cells: tuple[Cell, ...] = CELLS

    @property
    def name(self) -> str:
        size = f", {self.cache_tokens // 1000}k tokens" if self.cache_tokens else ""
        return f"{self.shape} {self.rate:g}/s x{self.engines}{size}"

    def traffic(self) -> Traffic:
        make = Scripted if self.shape in SCRIPTS else Workload
        return make(self.shape, self.rate, REQUESTS)


SETTINGS: tuple[Setting, ...] = (
    *(Setting(shape, 12) for shape in ("gsp_text", "gsp", "gsp_text_rotating", "turns")),
    Setting("documents", 8),
    *(Setting(shape, 4, 1, cells=ALONE) for shape in ("gsp_text", "gsp_text_rotating")),
    *(Setting("gsp_text", rate, cells=SWEPT) for rate in (4, 8, 20)),
    *(Setting("gsp_text", 12, engines, cells=SWEPT) for engines in (2, 6, 10)),
    # SGLang's memory fraction .5 and .9 of 48 GB, less 16.06 GB of weights, at 128 KiB a token
    *(Setting("gsp_text", 12, 4, size, SWEPT) for size in (60_000, 207_000)),
    *(Setting("gsp_text_rotating", rate, cells=SWEPT) for rate in (4, 20)),
    *(Setting("turns", rate, cells=SWEPT) for rate in (4, 20)),
    *(Setting("documents", rate, cells=SWEPT) for rate in (4, 12)),
    Setting("chat", 1.4, cells=SWEPT),
    Setting("longdoc", 2, cells=SWEPT),
)
NONE: Cell = ("", "")
GSP, EXACT = "gsp_text 12/s x4", "gsp 12/s x4"
ROTATING, SINGLE, LOOP = "gsp_text_rotating 12/s x4", "gsp_text 4/s x1", "gsp_text_rotating 4/s x1"
assert {GSP, EXACT, ROTATING, SINGLE, LOOP} <= {setting.name for setting in SETTINGS}


@dataclass(frozen=True)
class Published:
    """The paper's ratio of `cell` against `base`, above 1 where `cell` is better; lbgr stands for the paper's LBGR."""

    metric: str
    cell: Cell
    ratio: float
    source: str
    base: Cell = BASE
    setting: str = GSP


ABSTRACT = "abstract, its most; median and baseline by papernotes.org"
SUMMARY = "papernotes.org on ICLR 2026; setting not said"
TABLE_1 = "its Table 1 by papernotes.org; setting not said"
WORST = "papernotes.org, worst order; baseline not said"
WORKER = "abstract, the most; one worker by papernotes.org"
PUBLISHED: tuple[Published, ...] = (
    Published("p50_s", ("cache_aware_046", "rlt"), 26680 / 19191, TABLE_1),
    Published("p50_s", ("lbgr", "lru"), 26680 / 6025, TABLE_1),
    Published("p50_s", RLT, 26680 / 2263, TABLE_1),
    Published("ttft_p50_s", ("cache_aware_046", "rlt"), 25022 / 14332, TABLE_1),
    Published("ttft_p50_s", ("lbgr", "lru"), 25022 / 2958, TABLE_1),
    Published("ttft_p50_s", RLT, 25022 / 1088, TABLE_1),
    Published("hit_rate", ("cache_aware_046", "rlt"), 26.36 / 23.89, TABLE_1),
    Published("hit_rate", ("lbgr", "lru"), 33.33 / 23.89, TABLE_1),
    Published("hit_rate", RLT, 37.31 / 23.89, TABLE_1),
    Published("p50_s", RLT, 11.96, ABSTRACT),
    Published("ttft_p50_s", RLT, 14.06, ABSTRACT),
    Published("p95_s", RLT, 2.03, SUMMARY),
    Published("ttft_p95_s", RLT, 2.62, SUMMARY),
    Published("hit_rate", RLT, 1.3645, SUMMARY),
    Published("throughput_rps", RLT, 1.3651, SUMMARY),
    Published("p50_s", RLT, 30.9, SUMMARY, ("random", "lru")),
    Published("ttft_p50_s", RLT, 44.49, SUMMARY, ("random", "lru")),
    Published("p50_s", RLT, 22.8, WORST, BASE, ROTATING),
    Published("ttft_p50_s", RLT, 15.5, WORST, BASE, ROTATING),
    Published("hit_rate", RLT, 6.92, WORKER, ("lbgr", "lru"), SINGLE),
    Published("throughput_rps", RLT, 1.774, WORKER, ("lbgr", "lru"), SINGLE),
    Published("hit_rate", RLT, 6.92, WORKER, ("lbgr", "lru"), LOOP),
    Published("throughput_rps", RLT, 1.774, WORKER, ("lbgr", "lru"), LOOP),
)
MISSING = """\
Of the paper only the abstract was at hand; papernotes.org is a summary of it by others. Not found: figures by benchmark
(ShareGPT, UltraChat, LooGLE), by rate, by number of workers and by cache size. Left out for want of a profile:
Llama-3.1-70B (5.46 in latency, 7.19 in TTFT) and Mixtral-8x7B on 4 H200."""

METRICS = ("mean_s", "p50_s", "p95_s", "ttft_mean_s", "ttft_p50_s", "ttft_p95_s", "hit_rate", "throughput_rps")
RISING = ("hit_rate", "throughput_rps")  # where more is better


@dataclass(frozen=True)
class Job:
    setting: Setting
    cell: Cell
    seed: int

    def run(self) -> Run:
        (policy, options), fleet = ROUTERS[self.cell[0]], self.setting
        where = FleetSpec(fleet.engines, ("l40-8b",), 128, fleet.cache_tokens)
        return Run(fleet.traffic(), where, policy, self.cell[1], self.seed, options)


@dataclass(frozen=True)
class Result:
    """One run. values: of `METRICS`, in seconds from a request's arrival, tokens over tokens, requests a second."""

    setting: str
    router: str
    order: str
    seed: int
    failed: int
    values: dict[str, float] = field(default_factory=dict)


def measure(job: Job, report: Callable[[float], None]) -> Result:
    played = simulate(job.run(), report)
    served = played.served
    latencies, firsts = sorted(s.done_s - s.arrival_s for s in served), sorted(s.first_s - s.arrival_s for s in served)
    begin_s, end_s = min(s.arrival_s for s in served), max(s.done_s for s in served)
    hit_rate = sum(s.cached_tokens for s in served) / sum(s.prompt_tokens for s in served)
    spread = [(fmean(times), percentile(times, 0.5), percentile(times, 0.95)) for times in (latencies, firsts)]
    numbers = [*spread[0], *spread[1], hit_rate, len(served) / (end_s - begin_s)]
    values = {metric: float(f"{number:.5g}") for metric, number in zip(METRICS, numbers, strict=True)}
    return Result(job.setting.name, *job.cell, job.seed, played.failed, values)


def lines_of(jobs: Sequence[Job], watch: Watch, processes: int) -> Generator[tuple[str, Result], None, None]:
    with closing(measure_all(measure, jobs, watch, processes)) as results:
        for result in results:
            shown = ", ".join(f"{metric} {result.values[metric]:.4g}" for metric in METRICS)
            yield f"{result.setting}, {result.router} + {result.order}, seed {result.seed}: {shown}", result


class Tables:
    """Results as Markdown tables."""

    def __init__(self, results: Sequence[Result]) -> None:
        self._values: dict[tuple[str, Cell], dict[str, list[float]]] = {}  # over the seeds, in their order
        for result in sorted(results, key=lambda result: result.seed):
            place = self._values.setdefault((result.setting, (result.router, result.order)), {})
            for metric, value in result.values.items():
                place.setdefault(metric, []).append(value)

    def claims(self, gsp: str) -> str:
        """The published ratios beside ours, of the same router and of others. gsp: the setting in place of `GSP`."""
        ours = "here, `lbgr_code`", "`lbgr_paper`", "`lbgr`", "+ `rlt_gix`"
        published = [replace(s, setting=gsp) if s.setting == GSP else s for s in PUBLISHED if GSP in (gsp, s.setting)]
        return markdown_table(["what, where", "against", "the paper", *ours, "source"], map(self._claim, published))

    def _claim(self, published: Published) -> list[str]:
        router, order = published.cell
        others: list[Cell] = [(name, order) for name in ("lbgr_code", "lbgr_paper", "lbgr")]
        cells = others if router == "lbgr" and published.setting not in (SINGLE, LOOP) else [published.cell, NONE, NONE]
        ratios = [self._ratio(published, cell) for cell in (*cells, OURS if router == "lbgr" else NONE)]
        what = f"{published.metric}, {router} + {order}, {published.setting}"
        return [what, " + ".join(published.base), f"{published.ratio:.2f}", *ratios, published.source]

    def _ratio(self, published: Published, cell: Cell) -> str:
        """Geometric mean over the seeds, and the range; where nothing was hit, the means of both."""
        mine, base = (
            self._values.get((published.setting, each), {}).get(published.metric) for each in (cell, published.base)
        )
        if mine is None or base is None:
            return "-"
        if 0 in (*mine, *base):
            return f"{fmean(mine):.3f} against {fmean(base):.3f}"
        ratios = [a / b if published.metric in RISING else b / a for a, b in zip(mine, base, strict=True)]
        return f"{geometric_mean(ratios):.2f} [{min(ratios):.2f}-{max(ratios):.2f}]"

    def grid(self, metric: str) -> str:
        """Means over the seeds, settings down, cells across; the best in bold."""
        settings = list(dict.fromkeys(setting for setting, _ in self._values))
        cells = [cell for cell in CELLS if any((setting, cell) in self._values for setting in settings)]
        rows: list[list[str]] = []
        for setting in settings:
            means = {c: fmean(self._values[setting, c][metric]) for c in cells if (setting, c) in self._values}
            best = (max if metric in RISING else min)(means.values())
            shown = [
                f"**{means[c]:.3f}**" if means.get(c) == best else f"{means[c]:.3f}" if c in means else "-"
                for c in cells
            ]
            rows.append([setting, *shown])
        return markdown_table([metric, *(" + ".join(cell) for cell in cells)], rows)


def render(results: Sequence[Result]) -> str:
    tables = Tables(results)
    return "\n\n".join([tables.claims(GSP), MISSING, tables.claims(EXACT), *map(tables.grid, METRICS), DIFFERENCES])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument(
        "--seeds", default="3", metavar="N|A,B,...", help="N: seeds 0 to N-1; a list: those; default: 3"
    )
    parser.add_argument("--jobs", default="1", metavar="N", help="processes; default: 1")
    parser.add_argument("--shapes", metavar="NAME[,...]", help="only these, of " + ", ".join(shapes()))
    parser.add_argument("--out", type=Path, help="file for all runs, JSON")
    parser.add_argument("--show", type=Path, metavar="FILE", help="print the tables of such a file, run nothing")
    args = parser.parse_args()
    if args.show:
        print(render([Result(**row) for row in json.loads(args.show.read_text())["rows"]]))
        return
    wanted = names("shapes", [args.shapes], shapes()) if args.shapes else shapes()
    chosen = [setting for setting in SETTINGS if setting.shape in wanted]
    jobs = [Job(setting, cell, seed) for setting in chosen for cell in setting.cells for seed in seeds(args.seeds)]
    results = show(lambda watch: lines_of(jobs, watch, integer("jobs", args.jobs)))
    if args.out:
        rows: list[dict[str, Any]] = [asdict(result) for result in results]
        args.out.write_text(json.dumps({"rows": rows}) + "\n")
    print(render(results))


def shapes() -> list[str]:
    return list(dict.fromkeys(setting.shape for setting in SETTINGS))


if __name__ == "__main__":
    main()
