"""What a simulated run comes to: one row of numbers, as JSON or as a line of a table.

A row counts the answered requests behind the first tenth that arrived before the last session began. So it leaves out
the warm-up, and the last turns of conversations on a fleet that empties. Traffic in a closed loop says itself from when
until when its requests count.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass
from statistics import fmean

from router.errors import SetupError
from router.sim.fleet.agents import Agents
from router.sim.fleet.scenario import FleetSpec, Run
from router.sim.fleet.simulation import RunResult, ServedRequest, simulate
from router.sim.trace import ignore

WARM_UP = 0.1  # The part of the requests that is not counted.

KEYS = (
    "workload",
    "policy",
    "order",
    "engines",
    "rate",
    "seed",
    "mean_s",
    "p50_s",
    "p95_s",
    "p99_s",
    "ttft_mean_s",
    "ttft_p99_s",
    "hit_rate",
    "throughput_rps",
    "imbalance",
)


@dataclass(frozen=True, slots=True)
class Row:
    """One run, or the mean of several: the `KEYS`, then counts. Latencies are seconds from a request's arrival."""

    workload: str
    policy: str
    order: str
    engines: int
    rate: float
    """Sessions a second."""
    seed: int
    mean_s: float
    p50_s: float
    p95_s: float
    p99_s: float
    ttft_mean_s: float
    ttft_p99_s: float
    hit_rate: float
    """Cached tokens over prompt tokens."""
    throughput_rps: float
    """Requests answered between the first and the last arrival that count, over that time."""
    imbalance: float
    """The busy time of the busiest engine over the mean of all."""
    failed: float = 0
    preemptions: float = 0
    slo_attainment: float = math.nan
    """The share of the answers that kept the bounds on latency; nan if there are no bounds."""


def measure(run: Run, report: Callable[[float], None] = ignore) -> Row:
    """Simulate a run and return its row. Raises TraceError, and SetupError if nothing that counts was answered."""
    return summarize(run, simulate(run, report))


def summarize(run: Run, result: RunResult) -> Row:
    """Return the row of a run that was simulated. Raises SetupError if nothing that counts was answered."""
    window_s = run.traffic.window_s if isinstance(run.traffic, Agents) else None
    if window_s is None:
        start = WARM_UP * result.requests
        counted = [s for s in result.served if s.number >= start and s.arrival_s <= result.last_arrival_s]
    else:
        counted = [s for s in result.served if window_s[0] <= s.arrival_s <= window_s[1]]
    if not counted:
        raise SetupError(f"{run.policy} with {run.order}: no request that counts was answered; simulate more of them")
    latencies = sorted([s.done_s - s.arrival_s for s in counted])
    firsts = sorted([s.first_s - s.arrival_s for s in counted])
    begin_s, end_s = window_s or (min(s.arrival_s for s in counted), result.last_arrival_s)
    answered = sum(begin_s <= s.done_s <= end_s for s in result.served)
    return Row(
        run.traffic.label,
        run.policy,
        run.order,
        run.fleet.engines,
        round(run.traffic.rate, 6),
        run.seed,
        fmean(latencies),
        percentile(latencies, 0.50),
        percentile(latencies, 0.95),
        percentile(latencies, 0.99),
        fmean(firsts),
        percentile(firsts, 0.99),
        sum(s.cached_tokens for s in counted) / sum(s.prompt_tokens for s in counted),
        answered / (end_s - begin_s) if end_s > begin_s else 0.0,
        max(result.busy_s) / fmean(result.busy_s),
        result.failed,
        result.preemptions,
        fmean([meets_slo(s, run.fleet) for s in counted]) if run.fleet.slo_ttft_s or run.fleet.slo_tpot_s else math.nan,
    )


def meets_slo(served: ServedRequest, fleet: FleetSpec) -> bool:
    """Whether an answer kept the bounds on latency of its fleet."""
    late = fleet.slo_ttft_s is not None and served.first_s - served.arrival_s > fleet.slo_ttft_s
    later = max(1, served.output_tokens - 1)
    slow = fleet.slo_tpot_s is not None and (served.done_s - served.first_s) / later > fleet.slo_tpot_s
    return not late and not slow


def percentile(ordered: Sequence[float], part: float) -> float:
    """Return the smallest of the `ordered` values that at least this part of them do not exceed (nearest rank)."""
    return ordered[max(0, math.ceil(part * len(ordered)) - 1)]


def mean_row(rows: Sequence[Row]) -> Row:
    """Return the means of rows that differ only in the seed; the seed is that of the first one."""
    first = astuple(rows[0])
    numbers = [fmean(column) for column in zip(*[astuple(row)[6:] for row in rows], strict=True)]
    return Row(*first[:6], *numbers)


def to_json(row: Row) -> str:
    """Return the row as one JSON object on one line, its keys exactly `KEYS`."""
    return json.dumps({key: getattr(row, key) for key in KEYS})


COLUMNS: tuple[tuple[str, int, str], ...] = (
    ("engines", 7, "d"),
    ("rate", 7, ".4g"),
    ("mean s", 8, ".3f"),
    ("P50", 8, ".3f"),
    ("P95", 8, ".3f"),
    ("P99", 8, ".3f"),
    ("TTFT s", 8, ".3f"),
    ("TTFT P99", 8, ".3f"),
    ("hit", 6, ".3f"),
    ("req/s", 8, ".2f"),
    ("imbal.", 6, ".2f"),
    ("failed", 6, ".4g"),
)
SLO = ("in SLO", 6, ".3f")


class Table:
    """Lines of a Markdown table. The widths of its columns are fixed, so each line can be printed before the next is
    known. With `slo` it has a column for the share of the answers that kept the bounds."""

    def __init__(
        self, workloads: Sequence[str], policies: Sequence[str], orders: Sequence[str], *, slo: bool = False
    ) -> None:
        self._columns = (*COLUMNS, SLO) if slo else COLUMNS
        self._widths = [max(map(len, names)) for names in (("workload", *workloads), ("policy", *policies))]
        self._widths.append(max(map(len, ("order", *orders))))

    def head(self) -> str:
        names = [name.ljust(width) for name, width in zip(("workload", "policy", "order"), self._widths, strict=True)]
        heads = [name.rjust(width) for name, width, _ in self._columns]
        rules = ["-" * (width + 2) for width in self._widths] + [
            "-" * (width + 1) + ":" for _, width, _ in self._columns
        ]
        return "| " + " | ".join(names + heads) + " |\n|" + "|".join(rules) + "|"

    def line(self, row: Row) -> str:
        names = [n.ljust(w) for n, w in zip((row.workload, row.policy, row.order), self._widths, strict=True)]
        shown = (row.engines, row.rate, *astuple(row)[6:16], row.slo_attainment)
        cells = [f"{value:{width}{form}}" for value, (_, width, form) in zip(shown, self._columns, strict=False)]
        return "| " + " | ".join(names + cells) + " |"
