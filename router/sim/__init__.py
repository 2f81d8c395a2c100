"""Offline study: traces and workloads over the very orders, and the very router, that run live.

Eviction alone, requests one by one (`leafcutter bench eviction`):

    trace, workload -> Request ... -> replay.Cache over an order -> Replayed -> report
                                   '-> optimum.Optimum (furthest next use) -'

A fleet, in simulated time (`leafcutter simulate`); START at `play`:

    traffic (a workload, a trace) -> Session -> dialog -> core.Router -> engine over pool over an order -> Served
    hardware, setup: what an engine is; result, verdict, chart: what comes of it; parallel: many runs
"""
