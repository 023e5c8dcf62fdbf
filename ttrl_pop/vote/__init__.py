"""VOTE: a group of rollouts becomes answers, clusters of equal ones, a label and rewards. No torch.

`vote` is the verb and `rules` what it goes by; `extract` reads answers, `clusters` counts them; how to add a grader or
a reward stands in `graders` and `rewards`. An extractor is a function of (text, finish reason): beside the others in
`extract`, with its short name in `ttrl_pop.plugins` and cases in tests/cases/extract.json, or named as
`package.module:function`.
"""
