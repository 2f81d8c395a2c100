"""lbgr, learning-based greedy routing. `policy` is the place to start: the idea, and the events that it learns from.

`cost` has the equation of the cost. Its parts are `latency` (the learned coefficients), `engine_speed` (how slow each
engine is), `virtual_queue` (the unstreamed prompts that an engine has yet to compute), `duplication` (the price of a
second copy of a prefix) and `objective` (what is made short). `engine_steps` groups first tokens into the engine steps
that `latency` learns from, `shortlist` chooses which of many engines are weighed, and `options` has the weights.
"""
