"""Base weights, adapter and population as one policy, and what it computes: hidden states, logits, log-probabilities.

A model needs no code here: `ttrl_pop.model.load` opens what transformers knows, and `ttrl_pop.model.probe` refuses what
does not give its own logits when sequences are packed. To add another way of naming models, extend `source.locate`.
"""
