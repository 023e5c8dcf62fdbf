"""The table `population.options` of the populations that are built in. Needs no torch."""

from typing import Annotated, Literal

from pydantic import Field

from ttrl_pop.config import Section

Sigma = Annotated[float, Field(ge=0, le=1e3, allow_inf_nan=False)]


class NormNoiseOptions(Section):
    """The table `population.options` of norm-noise."""

    sigma: Literal["auto"] | Sigma = "auto"
    """Standard deviation of the noise; `auto` calibrates it on the given problems."""
    target_kl: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 0.04
    """`auto`: largest mean KL(base ‖ mind), nats per token."""
    target_flips: Annotated[float, Field(gt=0, le=1)] = 0.03
    """`auto`: largest share of tokens whose most likely next token changes."""
    spread: Literal["site", "dim"] = "site"
    """One log sigma for each site, or one for each dimension of each site."""
    level: Literal["sequence", "token"] = "sequence"
    """`sequence`: an offset is frozen for the whole sequence; `token`: a new one for every token (ablation)."""
    scope: Literal["sequence", "completion"] = "sequence"
    """`completion`: the mean mind reads the prompt, once for all minds; noise begins behind it."""
    final_mu: bool = True
    """Whether mu of the norm before the LM head learns; without it (its noise stays) a trained model can be exported
    as a plain folder where the head has no bias (`ttrl-pop export`)."""
