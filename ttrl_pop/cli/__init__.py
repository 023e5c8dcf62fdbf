"""The edge: what a person types, sees and pipes."""
