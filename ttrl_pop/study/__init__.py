"""Studies: arms side by side over several seeds, where each cell is a run directory like any other.

`design` reads a study, `cells` says where its runs are and what they are made from, `figures` reads what came of one,
`rows` puts arms side by side. A study is a TOML file; those beside this file have a name. To add one: a file here, and
its name in `design.NAMES`.
"""
