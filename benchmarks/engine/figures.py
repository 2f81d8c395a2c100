"""Draws the figures of docs/algorithms.md from real runs: what each eviction order evicts, what GIX has learned, its
guard.

    .venv/bin/python -m benchmarks.engine.figures

Each run takes some seconds to a minute; matplotlib comes with the extra `bench`.
"""

from __future__ import annotations

import argparse
from itertools import islice
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from engine_patches.orders import ORDERS
from engine_patches.orders.gix import KINDS, MOST_HITS
from engine_patches.orders.structures.hazard import BINS, STARTS
from router.sim.eviction.replay import Cache
from router.sim.eviction.workload import WORKLOADS, Workload
from router.sim.trace import Request

GOOD, BAD = "#9bb8a4", "#b5523b"
ORDER_OF_PANELS = ("lru", "rlt", "lfu", "sieve", "s3fifo", "arc", "gix", "rlt_gix")


def workload(name: str, requests: int, capacity: int) -> list[Request]:
    return list(islice(Workload(name).open(capacity), requests))


def victims(name: str, requests: list[Request], capacity: int) -> tuple[list[float], list[float], float]:
    """Idle times of evicted blocks that were asked for again, and of the others; and the hit rate.

    Idle times are in accesses over capacity.
    """
    last_use = {block: number for number, request in enumerate(requests) for block in request.blocks}
    cache = Cache(ORDERS[name](capacity, 0))
    used: dict[Any, int] = {}
    again: list[float] = []
    never: list[float] = []
    clock = hits = 0
    for number, request in enumerate(requests):
        hits += cache.serve(request)
        for block in cache.evicted:
            (again if last_use[block] > number else never).append((clock - used[block]) / capacity)
        for block in request.blocks:
            used[block] = clock
            clock += 1
    return again, never, hits / clock


def draw_victims(folder: Path) -> None:
    """A panel for each order: the ages at which it evicts, and whether the block is asked for again."""
    capacity = 10_000
    requests = workload("gsp", 4096, capacity)
    figure = Figure(figsize=(11, 5), layout="constrained")
    for panel, name in zip(figure.subplots(2, 4, sharex=True, sharey=True).flat, ORDER_OF_PANELS, strict=True):
        again, never, rate = victims(name, requests, capacity)
        bins = [step / 10 for step in range(61)]
        panel.hist([again, never], bins=bins, stacked=True, color=[BAD, GOOD], label=["asked for again", "never again"])
        panel.set_title(
            f"{name}: hit rate {rate:.3f}, {len(again) / (len(again) + len(never)):.0%} in vain", fontsize=9
        )
        panel.set(yscale="log", ylim=(50, 1e6))
        print(name, f"{rate:.4f}", len(again), len(never), flush=True)
    figure.supxlabel("blocks accessed since its last use, in cache sizes", fontsize=9)
    figure.supylabel("evicted blocks", fontsize=9)
    figure.legend(*panel.get_legend_handles_labels(), loc="outside lower right", ncols=2, frameon=False, fontsize=9)
    figure.savefig(folder / "victims.png", dpi=110)


def draw_index(folder: Path) -> None:
    """The level of each class and age bin after a run, lowest evicted first."""
    figure = Figure(figsize=(11, 4), layout="constrained")
    for panel, name in zip(figure.subplots(1, 3, sharey=True), ("gsp", "chat", "anti"), strict=True):
        capacity = 10_000
        cache = Cache(ORDERS["gix"](capacity, 0))
        for request in islice(Workload(name).open(capacity), 4000):
            cache.serve(request)
        order: Any = cache.order
        rows = [order._hazards.levels(c) for c in range(KINDS)]
        image = panel.imshow(rows, aspect="auto", cmap="YlGn")
        panel.set_xticks(range(BINS), [str(start) for start in STARTS], fontsize=7)
        panel.set_title(name, fontsize=9)
        figure.colorbar(image, ax=panel, shrink=0.8)
        panel.set_xlabel("epochs since the last use", fontsize=9)
    halves = ("front", "back", "front, branch", "back, branch")
    names = [f"{hits} hits, {half}" for hits in range(MOST_HITS + 1) for half in halves]
    figure.axes[0].set_yticks(range(len(names)), names, fontsize=7)
    figure.savefig(folder / "index.png", dpi=110)


def draw_guard(folder: Path) -> None:
    """The guard's debt over the requests, and when it decides."""
    figure = Figure(figsize=(11, 3), layout="constrained")
    panels = figure.subplots(1, 2)
    for panel, (name, capacity, requests) in zip(
        panels, (("gsp", 10_000, 4096), ("adversary", 1000, 6000)), strict=True
    ):
        cache = Cache(ORDERS["rlt_gix"](capacity, 0))
        order: Any = cache.order
        debts, guarded = [], []
        for request in islice(Workload(name).open(capacity), requests):
            cache.serve(request)
            debts.append(order.debt / capacity)
            guarded.append(order.fallback)
        panel.plot(debts, color="#2f5d50", linewidth=1)
        panel.fill_between(range(len(debts)), -0.5, 0.6, where=guarded, color=BAD, alpha=0.15, linewidth=0)
        panel.axhline(0.5, color=BAD, linewidth=0.8, linestyle="--")
        panel.set(ylim=(-0.55, 0.65), xlabel="requests", ylabel="debt, cache sizes")
        share = sum(guarded) / len(guarded)
        panel.set_title(f"{name}: the guard decides for {share:.0%} of the requests", fontsize=9)
        print("guard", name, f"{share:.3f}", order.misses, order.shadow_misses, flush=True)
    figure.savefig(folder / "guard.png", dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[2] / "docs" / "figures")
    folder: Path = parser.parse_args().out
    assert {"gsp", "chat", "anti", "adversary"} <= set(WORKLOADS)
    folder.mkdir(parents=True, exist_ok=True)
    draw_victims(folder)
    draw_index(folder)
    draw_guard(folder)


if __name__ == "__main__":
    main()
