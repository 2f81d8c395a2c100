"""Generic online estimators: `predict_one` returns a prediction and changes nothing, `learn_one` takes one sample and
returns nothing.

They know nothing of engines' interfaces, of clocks or of policies: numbers go in and numbers come out.
"""
