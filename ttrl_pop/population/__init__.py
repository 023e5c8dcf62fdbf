"""Populations of minds: what a mind is, and how one is put into a model."""
