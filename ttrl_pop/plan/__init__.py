"""What a command would do, before it does: rollouts and tokens by part, memory, disk and seconds; nothing is written.

work.py counts, footprint.py adds up bytes, probe.py measures for two seconds on a few layers of the model's width, and
forecast.py puts the three together: the one way into this wing.
"""
