"""The router without any I/O. It takes time and chance as arguments; the gateway, the simulator and tests drive it.

`router` is the one object that they drive, and the place to start reading. `fleet` owns the engines' health and load.
`experiment` lets one policy decide and compares the others with it, through the questions in `proposal`. `decision_log`
keeps the last decisions. `cache_observation` compares expected with reported cache hits. `retries` says when a request
is tried on another engine. `learned_state` is what survives a restart, `status` what people see, and `options` what
they can set.
"""
