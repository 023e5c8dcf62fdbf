"""The way out: one mind of a trained population as a folder that other tools open.

A form (`plain`, `adapter`, `code`) is a file with `check`, which refuses what it cannot hold exactly, `write` and
`reopen`; its name goes into `ttrl_pop.export.export.FORMS`. Whatever a form writes is opened again and compared with
the run before it counts (`ttrl_pop.export.proof`).
"""
