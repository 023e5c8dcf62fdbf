"""REPORT: what is said of a step and of an evaluation. No torch, and nothing here changes what is learned.

`step` makes a row of metrics.jsonl, `measures` the figures of one pass over the problems by the formulas of
`estimators`; `gold` alone compares with gold answers; `rows` turns nouns into JSON. To add a figure of a step: a line
in `step`; of an evaluation: a line in `measures.LABEL_FREE`, or its formula in `estimators`, tested in tests/report by
hand or against every subset. What needs gold is None without it.
"""
