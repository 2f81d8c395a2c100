"""What an eviction order costs per block access, by the size of the cache: flat is O(1).

    .venv/bin/python -m benchmarks.engine.order_cost
    .venv/bin/python -m benchmarks.engine.order_cost --orders gix rlt_gix --sessions 2000

Requests share one of many prefixes (popularity 1/rank, as many as keep the hit rate alike at every size) and end in
blocks of their own; the cache and what the order remembers of evicted blocks are full before anything is timed. Times
are CPU time of the order's verbs alone, in chunks of requests; the median chunk counts. `end of epoch`: the periodic
work of the learned orders, included in the mean. With `--sessions` each request is of one of so many sessions, and
after it the order is told to expect that session after a random time, which fills all classes that sessions make. Alone
on a core; other work beside it raises every figure.
"""

from __future__ import annotations

import argparse
import itertools
import math
import random
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path
from time import thread_time
from typing import Any

from benchmarks.report import machine, markdown_table, write_json
from engine_patches.orders import ORDERS
from router.sim.eviction.replay import Cache
from router.sim.hints import ALONE, Hinted, Hints
from router.sim.trace import Request

PREFIX, TAIL = 16, 16  # blocks
EXPECTED_S, SPREAD = 45.0, 1.2  # hints: median, and standard deviation of the logarithm
CHUNK = 250  # requests


class TimedHints(Hints):
    """Tells the order to expect the session of each request after a random time. `seconds`: the CPU time it took."""

    def __init__(self, seed: int) -> None:
        super().__init__(ALONE, seed)
        self.seconds = 0.0
        self._random = random.Random(seed)

    def answered(self, session: str | None, _stop: object, _now_s: float, _tool: object, order: Hinted) -> None:
        expected_s = self._random.lognormvariate(math.log(EXPECTED_S), SPREAD)
        start = thread_time()
        order.expect(session, expected_s)
        self.seconds += thread_time() - start


def requests(capacity: int, seed: int, sessions: int = 0) -> Iterator[Request]:
    """Endless; the more blocks the cache has, the more prefixes there are. They come at one a second."""
    chance = random.Random(seed)
    groups = max(4, capacity // PREFIX)
    weights = list(itertools.accumulate(1 / rank for rank in range(1, groups + 1)))
    fresh = itertools.count(groups * PREFIX)
    who = random.Random(seed)
    for now_s in itertools.count():
        (group,) = chance.choices(range(groups), cum_weights=weights)
        head = range(group * PREFIX, (group + 1) * PREFIX)
        session = str(who.randrange(sessions)) if sessions else None
        yield Request((*head, *(next(fresh) for _ in range(TAIL))), arrival_s=float(now_s), session=session)


def measure(name: str, capacity: int, accesses: int, seed: int, sessions: int = 0) -> dict[str, Any]:
    hints = TimedHints(seed)
    cache = Cache(ORDERS[name](capacity, seed), hints)
    order: Any = cache.order
    epochs: list[float] = []
    if hasattr(order, "_end_epoch"):
        end_epoch = order._end_epoch

        def timed() -> None:
            start = thread_time()
            end_epoch()
            epochs.append(thread_time() - start)

        order._end_epoch = timed
    stream = requests(capacity, seed, sessions)
    # Afterwards the cache is full, and the order remembers as many evicted blocks as it can, four times the cache.
    for request in itertools.islice(stream, 12 * capacity // (PREFIX + TAIL) + 1000):
        cache.serve(request)
    epochs.clear()
    chunks, hits = [], 0
    for _ in range(max(8, accesses // (CHUNK * (PREFIX + TAIL)))):
        part = list(itertools.islice(stream, CHUNK))
        before = cache.seconds + hints.seconds
        hits += sum(cache.serve(request) for request in part)
        chunks.append((cache.seconds + hints.seconds - before) / (CHUNK * (PREFIX + TAIL)))
    return {
        "order": name,
        "capacity": capacity,
        "sessions": sessions,
        "us_per_access": 1e6 * statistics.median(chunks),
        "us_p90": 1e6 * statistics.quantiles(chunks, n=10)[-1],
        "end_of_epoch_ms": 1e3 * statistics.median(epochs) if epochs else None,
        "end_of_epoch_max_ms": 1e3 * max(epochs) if epochs else None,
        "hit_rate": hits / (len(chunks) * CHUNK * (PREFIX + TAIL)),
    }


def table(rows: Sequence[dict[str, Any]]) -> str:
    heads = ["order", "blocks", "us an access", "P90", "end of epoch, ms", "its longest", "hit rate"]
    lines: list[list[str]] = []
    for row in rows:
        epoch = ["-", "-"]
        if row["end_of_epoch_ms"] is not None:
            epoch = [f"{row['end_of_epoch_ms']:.2f}", f"{row['end_of_epoch_max_ms']:.2f}"]
        figures = [f"{row['us_per_access']:.1f}", f"{row['us_p90']:.1f}", *epoch, f"{row['hit_rate']:.3f}"]
        lines.append([row["order"], f"{row['capacity']:,}", *figures])
    return markdown_table(heads, lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--orders", nargs="+", default=["lru", "rlt", "gix", "rlt_gix"], choices=ORDERS)
    parser.add_argument("--capacities", nargs="+", type=int, default=[1_000, 10_000, 100_000, 1_000_000])
    parser.add_argument("--accesses", type=int, default=400_000, help="timed accesses of each order and size")
    parser.add_argument("--sessions", type=int, default=0, help="whose requests they are; 0: of none")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="file for the rows and the machine, JSON")
    args = parser.parse_args()
    rows = []
    for capacity in args.capacities:
        for name in args.orders:
            rows.append(measure(name, capacity, args.accesses, args.seed, args.sessions))
            print(rows[-1], flush=True)
    if args.out:
        write_json(args.out, {**machine(), "rows": rows})
    print(table(rows))


if __name__ == "__main__":
    main()
