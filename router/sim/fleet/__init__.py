"""A fleet in simulated time: clients, the gateway's own router and policies, and a model of each engine.

Start at `simulation`, which plays one run from event to event. What is played stands in `scenario` (engines and what
happens to them), `traffic` (sessions by name or from a trace) and `dialog` (the tokens that clients send); `client`
holds the sessions and requests in progress. An engine is `engine` (its scheduler) over `pool` (its cache), serving
`job`s at the speed of `hardware`. What comes of runs is in `result` (numbers), `verdict` (which policy is best) and
`chart` (a figure).
"""
