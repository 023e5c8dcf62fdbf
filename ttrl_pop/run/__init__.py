"""What a run works with and goes by."""
