"""ttrl-pop: a language model improves itself at test time, without labels."""

__version__ = "0.1.0"
