"""Rewards of a group."""
