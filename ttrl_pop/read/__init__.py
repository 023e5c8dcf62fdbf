"""READ: files, pipes and data sets of the hub become problems and their answer key, or groups that another tool wrote.

`lines` reads files and pipes, `rows` JSON with its place for errors, `hub` the rows of a data set; `problems` and
`rollouts` say what they mean. To read another layout: its names in the tables of `question`, `choices` and `gold`, or
of `rollouts`, `finish` and `chat`, and rows of it in tests/cases/problems.json or rollouts.json. Another kind of source
yields `rows.Row`, as `hub` does through `rows.rows_of`; another packed format is a line in `lines.PACKED`.
"""
