"""The same numbers up to rounding, faster."""
