"""Graders decide when two answers are equal: `base` holds the interface, `exact` the canonical key."""
