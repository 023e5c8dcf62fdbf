"""LEARN: tallies become an update of adapter and population.

`learner` takes the steps, `grpo` has the formulas, `objective` applies them to a micro-batch. To add a loss, give it a
name in `grpo.Loss` and its case in the weights, advantages or ratios there; the tests run over all of them.
"""
