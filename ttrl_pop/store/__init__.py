"""The run directory on disk: `directory` names its files and finds a run, `files` writes what appears whole or not at
all, `checkpoint` saves and loads steps.

To keep another file of a run: its name in `directory.RunDirectory`, written by `files.write_atomic`. What belongs to a
step goes into its checkpoint, where the MANIFEST covers it; raise `checkpoint.FORMAT` when what is read there changes.
"""
