"""The `leafcutter` command: flags in, one of the other rooms at work, lines out.

Start at `main`, which knows all commands. `simulate` and `bench_eviction` are the two studies, which share `flags`
(lists, numbers and seeds) and `progress` (lines as they come, and how far the runs are).
"""
