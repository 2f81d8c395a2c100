"""Online learners: `predict_one` asks and never mutates, `learn_one` teaches and returns nothing.

They know no engine surface, clock or policy; numbers in, numbers out.
"""
