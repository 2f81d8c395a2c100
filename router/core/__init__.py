"""The router without I/O: it takes time and chance as arguments, and is driven by the gateway, the simulator and tests.

`router` is the one object that they drive. `fleet` keeps the engines' health and load, `experiment` lets policies
decide and compare, `decision_log` keeps what was decided, `retries` says when another engine is tried, `learned_state`
is what survives a restart, `status` what people see, `options` what they can set.
"""
