"""Eviction orders on a single cache, one request at a time: hit rates, and what the decisions cost.

Start at `replay`, which drives an order as an engine would. `workload` makes requests by name, `optimum` is the bound
that no order can beat, `sweep` runs every order on every trace at every capacity, and `report` shows the rows.
"""
