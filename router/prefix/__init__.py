"""What engines hold: prompts as chained blocks (`blocks`), the map from blocks to engines (`block_map`), and the belief
about each engine's cache (`index`), kept by an index that suits its eviction order: `lru`, or `survival` with its
learned `survival_curve` over the `recency` of blocks. `observation` is what an answer tells of it.
"""
