"""Offline studies of eviction and routing: traces and workloads meet the very eviction orders, and the very router,
that run live.

This room has two halves and what both share. `eviction` replays requests one by one over a single cache and counts hits
(`leafcutter bench eviction`); start reading at `eviction.replay`. `fleet` plays clients, the gateway's router and
several engines on a simulated clock (`leafcutter simulate`); start at `fleet.simulation`. Both read recorded requests
with `trace` and agents' conversations with `agents`, tell orders of sessions what `hints` say, spread their runs over
processes with `parallel`, and draw into files with `figure`.

    eviction    trace, workload -> Request ... -> replay.Cache over an order -> ReplayResult -> sweep -> report
                                            '-> optimum.Optimum (furthest next use) -'

    fleet       traffic -> Session -> dialog -> simulation, which drives core.Router and one engine for each place:
                engine over pool over an eviction order, its steps as long as hardware says
                -> RunResult -> result (a row of numbers), verdict (a sentence), chart (a figure)
"""
