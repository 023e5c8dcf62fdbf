"""Populations: what a mind is, and how minds are put into a model.

To add one, subclass `ttrl_pop.population.base.Population` in a file of its own and name it in `ttrl_pop.plugins`; as a
plug-in it is named `package.module:Class` and needs no change here (examples/plugins/population_scale.py). What it must
learn of a model before its minds can be embodied is found in `ttrl_pop.fit`.
"""
