"""Before step 1: what a population must learn of this model."""
