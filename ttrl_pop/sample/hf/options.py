"""The table `backend_options` of the backend `hf`. Needs no torch."""

from ttrl_pop.config import Section


class HfOptions(Section):
    """The table `backend_options` of `hf`."""

    graphs: bool | None = None
    """Record decode steps as CUDA graphs; None: on a CUDA GPU, where the model's steps can be recorded."""
