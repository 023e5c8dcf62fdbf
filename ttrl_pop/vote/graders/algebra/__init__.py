"""Equality of two answers by algebra."""
