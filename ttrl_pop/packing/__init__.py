"""Many sequences as one row without padding."""
