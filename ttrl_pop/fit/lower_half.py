"""What the lower half of a model makes of the completions of a fit: the same at every step, so it is computed once."""

import torch
from jaxtyping import Float
from torch import Tensor

from ttrl_pop.fit.completions import Reading
from ttrl_pop.kernels.memory import limit_bytes
from ttrl_pop.model.policy import Policy
from ttrl_pop.population.latent import Latent

SHARE = 1 / 16
"""Share of the memory of a process that these states may take. What has no room is computed at every step."""

SHARED = ("num_kv_shared_layers", "kv_sharing_modes")
"""Settings of models whose upper layers read keys and values of lower ones, which must be computed then."""


class LowerHalf:
    """Hidden states of completions at the layer that codes enter, kept by the completion's number."""

    def __init__(self, policy: Policy, population: Latent) -> None:
        self.policy, self.population = policy, population
        self.room = int(SHARE * limit_bytes(policy.device))
        config = policy.network.config.get_text_config()
        if any(getattr(config, name, None) for name in SHARED):
            self.room = 0
        self._kept: dict[int, Tensor] = {}

    @torch.no_grad()
    def computed(self, reading: Reading) -> Float[Tensor, "N D"]:
        """States of all tokens of a reading, which are kept where there is room."""
        found: list[Tensor] = []

        def seen(states_ND: Tensor) -> Tensor:
            found.append(states_ND)
            return states_ND.new_zeros(len(states_ND), self.population.options.bits)

        with self.policy.as_base(), self.population.encoding(seen):
            self.policy.hidden(reading.packed)
        (states_ND,) = found
        for each, tokens in zip(reading.completions_B, reading.tokens_B, strict=True):
            size = len(tokens) * states_ND.shape[1] * states_ND.element_size()
            if size <= self.room:
                self._kept[each.number] = states_ND[list(tokens)]
                self.room -= size
        return states_ND

    def known(self, reading: Reading) -> Float[Tensor, "N D"] | None:
        """States of all tokens of a reading; None where some are not kept."""
        if not all(each.number in self._kept for each in reading.completions_B):
            return None
        kept_ND = torch.cat([self._kept[each.number] for each in reading.completions_B])
        tokens_N = torch.tensor([token for tokens in reading.tokens_B for token in tokens], device=kept_ND.device)
        return torch.empty_like(kept_ND).index_copy_(0, tokens_N, kept_ND)
