"""Graders decide when two answers are equal: `base` holds the interface, `exact` the canonical key that all share.

`math` adds algebra (`algebra`, in the process of `math_worker`), `choice` the letters of multiple-choice questions.
"""
