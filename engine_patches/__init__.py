"""Leafcutter inside the engine: it decides which block a vLLM prefix cache evicts.

    vLLM --(entry point)--> plugin --> adapter --> orders
                               |          `------> exporter (the order's counters, over HTTP)
                               `--> settings

`orders` are pure data structures over block ids, with the standard library only. `adapter` gives one of them the
interface of vLLM's free-block queue and tells it what happens to blocks. `plugin` puts the adapter in place, or refuses
and says why; `host_interface` and `host_trial` check that the vLLM at hand is one that the adapter fits.
"""

# The project's only version number: pyproject.toml reads it from here when a distribution is built. A literal, so that
# importing the plugin cannot fail where the distribution's metadata is missing.
__version__ = "0.1.0"
