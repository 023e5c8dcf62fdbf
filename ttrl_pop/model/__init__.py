"""Base weights, adapter and population as one policy."""
