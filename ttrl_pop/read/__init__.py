"""READ: files, pipes and data sets of the hub become problems and their answer key, or groups that another tool wrote.

`rows` reads JSON with its place for errors, `hub` the rows of a data set; `problems` and `rollouts` say what they mean.
To read another layout: its field names in `problems` or `rollouts`, and rows of it in tests/cases/problems.json or
rollouts.json. Another kind of source yields `rows.Row`, as `hub` does through `rows.rows_of`.
"""
