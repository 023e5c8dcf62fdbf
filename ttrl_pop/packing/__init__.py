"""Many sequences as one row without padding: which tokens are read once, and which see each other.

`pack` lays trees out as a row (`radix`: what they share; `plan`: blocks of it for attention), `budget` says what a row
may hold. To add another way for tokens to see each other, subclass `ttrl_pop.packing.attention.Plan`.
"""
