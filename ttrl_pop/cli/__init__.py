"""The edge: what a person types, sees and pipes. One file for each command, named after it.

A new command is a function in `app.py` that says which flags it takes (`flags.takes`) and imports its file when it
runs. That file gets checked inputs (`inputs.py` before torch is loaded, `opening.py` with the model), iterates what the
floors below yield, shows it (`display/`) and prints rows (`printing.py`). docs/CLI.md is made anew after it.
"""
