"""Offline study: traces and workloads, replayed over the very eviction orders that run inside the engines.

trace, workload -> Request ... -> replay.Cache over an order -> Replayed -> report
                               '-> optimum.Optimum (furthest next use) -'
"""
