"""The run directory on disk: `directory` names its files and finds a run, `files` writes what appears whole or not at
all, `checkpoint` saves and loads steps, `identity` knows the files beside them again, and `reading` is how all of it is
read back.

To keep another file of a run: its name in `directory.RunDirectory`, written by `identity.record`. What belongs to a
step goes into its checkpoint, where the MANIFEST covers it; raise `checkpoint.FORMAT` when what is read there changes.
What it means when it is damaged is said in the table of `reading`.
"""
