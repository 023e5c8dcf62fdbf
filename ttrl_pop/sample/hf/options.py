"""The table `backend_options` of the backend `hf`. Needs no torch."""

from ttrl_pop.config import Section


class HfOptions(Section):
    """The table `backend_options` of `hf`."""

    graphs: bool = False
    """Record decode steps as CUDA graphs."""
