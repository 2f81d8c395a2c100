"""lbgr, learning-based greedy routing: `policy` has the rule and the events it learns from, `cost` the equation.

What the equation is made of: `latency` (the learned coefficients), `engine_speed` (how slow each engine is),
`virtual_queue` and `engine_steps` (what first tokens and their absence tell), `duplication` (the price of a copy),
`objective` (what is made short), `shortlist` (which of many engines are weighed), `options`.
"""
