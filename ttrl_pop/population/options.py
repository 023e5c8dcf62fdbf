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
    sites: Literal["all", "input", "post-attention", "last-third"] = "all"
    """Norms that the noise stands behind: all; the first or the second of each layer; those of the last third of the
    layers and the one before the LM head."""
    decay: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Factor on sigma after every step, beside what is learned of it; 1: none."""
    final_mu: bool = False
    """Whether mu of the norm before the LM head learns too; with it, no plain folder (`ttrl-pop export`) holds a
    trained model whose head has no bias. The noise of that norm is there in both cases."""


class LatentOptions(Section):
    """The table `population.options` of latent."""

    bits: Annotated[int, Field(ge=1, le=16)] = 8
    """Bits of a code, of which there are 2^bits."""
    level: Literal["sequence", "token"] = "sequence"
    """`sequence`: one code for the whole sequence; `token`: a new one for every token (ablation)."""
    fitted: str | None = None
    """Folder of `ttrl-pop fit`, whose fit is taken; without one it is fitted on the given problems."""
    kappa: Literal["auto"] | Annotated[float, Field(ge=0, allow_inf_nan=False)] = "auto"
    """Fit: bits of a code that are free; `auto`: half of what a completion of the base model tells, at most 4."""
    rollouts: Annotated[int, Field(ge=2)] = 8
    """Fit: completions of the base model for each problem."""
    steps: Annotated[int, Field(ge=1)] = 100
    """Fit: steps."""
    lr: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 0.01
    """Fit: learning rate, in units of the hidden states' size at the middle layer for what a code adds."""
    untold: Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False)] = 0.125
    """Fit: share of the completions of a step that are read under a code of the prior, as all are in use. More leaves
    each mind more of its sense, fewer set minds farther apart."""
    encoder_width: Annotated[int, Field(ge=16, le=1024, multiple_of=16)] = 128
    """Fit: width of the encoder, which is needed for the fit alone."""
    least_gap: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.1
    """Bits of a completion that codes must decide on held-out problems; a fit that falls short is refused. 0 refuses
    none."""
