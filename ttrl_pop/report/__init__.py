"""REPORT: what is said of a step and of an evaluation."""
