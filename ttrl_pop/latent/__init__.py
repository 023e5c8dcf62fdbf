"""The latent Z of a Free Transformer (arXiv 2510.17558): a code of random bits that is drawn before a text is written.

`codes` has the formulas, `encoder` what reads a code off a text, `free_transformer` the paper's own model. Nothing here
knows of problems, votes or a pretrained model.
"""
