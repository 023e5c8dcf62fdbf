"""LEARN: tallies become an update."""
