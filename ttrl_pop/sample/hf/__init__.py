"""Rollouts by our own loop over transformers."""
