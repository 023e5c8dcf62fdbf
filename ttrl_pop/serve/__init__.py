"""A trained population behind the OpenAI protocol: vLLM's server, with names for minds and for their vote.

prepare.py    a run's checkpoint → files and settings that the server starts with
names.py      which weights and which mind a model's name stands for
app.py        what stands in front of vLLM's own application: names in, names out
polling.py    one request to `NAME/vote` → a request for every mind → the majority's answer
"""
