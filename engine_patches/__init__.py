"""Leafcutter inside the engine: which block a vLLM prefix cache forgets.

    vLLM --(entry point)--> plugin --> adapter --> orders
                               |          `------> exporter (the order's counters, over HTTP)
                               `--> settings

`orders` are pure data structures over block ids (standard library only). `adapter` gives one of them the
shape of vLLM's free-block queue and tells it what happens to blocks. `plugin` puts the adapter in place, or
refuses and says why.
"""

__version__ = "0.1.0"
