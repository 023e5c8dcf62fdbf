"""The letters experiment of the Free Transformer (arXiv 2510.17558, section 4.1): what a latent code comes to carry.

`task` makes the texts, `regimes` trains one model for each number of free bits, `figures` measures what the codes say.
"""
