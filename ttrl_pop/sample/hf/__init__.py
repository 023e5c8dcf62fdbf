"""Rollouts by our own loop over a transformers model, whose weights the learner shares.

backend.py   who enters, who leaves, what fits
cache.py     keys and values in slots that are reused
decode.py    one more token of each rollout, and CUDA graphs of that
draw.py      a uniform number → a token
options.py   the table `backend_options`
"""
