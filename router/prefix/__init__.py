"""What the engines' prefix caches are believed to hold.

`blocks` cuts a prompt into chained blocks, and `block_map` maps each block to the engines that hold it. `index` is the
facade: it keeps every engine in the index that suits the engine's eviction order, which is `lru`, or `survival` with
its learned `survival_curve` over the `recency` of blocks. `observation` is what an answer tells about an engine's
cache.
"""
