"""Graders decide when two answers are equal: `base` holds the interface, `exact` the canonical key that all share.

`math` adds algebra (`algebra`, in the process of `math_worker`), `choice` the letters of multiple-choice questions. To
add one: a file here with a subclass of `base.Grader`, and its short name in `ttrl_pop.plugins`; a class of your own is
named as `package.module:Name` (examples/plugins/grader_casefold.py). tests/vote/graders shows what is asked of one:
equal and different pairs, and votes that do not depend on order or spelling.
"""
