"""A population plug-in: every mind multiplies the output of every norm by gains of its own, near 1.

    y = Norm(x) · (1 + sigma · eps),   eps ~ N(0, I) a pure function of (mind seed, site)

One log sigma for each site is trained; the mean of the gains is not, as the norm's own weight already says it.

PYTHONPATH=examples/plugins ttrl-pop run problems.jsonl --population population_scale:NormScale \
    --set population.options.sigma=0.02
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from ttrl_pop import MEAN, Metrics, Mind, Population, Section, gaussian_kl, hidden_size, norm_sites, randomness


class NormScale(Population):
    class Options(Section):
        sigma: Annotated[float, Field(gt=0)] = 0.02
        """Standard deviation of the gains, in the prior and at the start."""

    log_sigma: nn.Parameter

    def attach(self, network: nn.Module) -> None:
        found = norm_sites(network)
        weight = next(network.parameters())
        # Gains this near to 1 need more digits than bf16 has.
        dtype = torch.promote_types(weight.dtype, torch.float32)
        self.log_sigma = nn.Parameter(torch.empty(len(found), 1, dtype=dtype, device=weight.device))
        self.restart()
        self.sites, self.width = [name for name, _ in found], hidden_size(network)
        self._gains: Tensor | None = None
        self._mind_N: Tensor | None = None
        for index, (_, module) in enumerate(found):
            module.register_forward_hook(self._hook(index))

    def restart(self) -> None:
        with torch.no_grad():
            self.log_sigma.fill_(math.log(self.options.sigma))

    @contextmanager
    def embody(self, minds_M: Sequence[Mind], mind_N: Tensor, positions_N: Tensor) -> Iterator[None]:
        eps = torch.stack([self._eps(mind) for mind in minds_M], dim=1)
        outer = self._gains, self._mind_N
        self._gains, self._mind_N = 1 + self.log_sigma.exp()[:, None] * eps, mind_N
        try:
            yield
        finally:
            self._gains, self._mind_N = outer

    def kl_to_prior(self) -> Tensor:
        sigma0 = self.log_sigma.new_tensor(self.options.sigma)
        return gaussian_kl(torch.zeros_like(self.log_sigma), self.log_sigma, sigma0).mean()

    def metrics(self) -> Metrics:
        with torch.no_grad():
            return {
                "population/sigma": float(self.log_sigma.mean().exp()),
                "population/kl_prior": float(self.kl_to_prior()),
            }

    def _eps(self, mind: Mind) -> Tensor:
        """Standard noise [S, D] of one mind; the mean mind has none."""
        rows = [
            randomness.stream("scale", mind.seed, site).standard_normal(self.width, np.float32) for site in self.sites
        ]
        return torch.from_numpy(np.stack(rows)).to(self.log_sigma) * (mind != MEAN)

    def _hook(self, index: int) -> Any:
        def scale(module: nn.Module, inputs: Any, output: Tensor) -> Tensor | None:
            if self._gains is None or self._mind_N is None:
                return None
            return (output * self._gains[index].index_select(0, self._mind_N)).to(output.dtype)

        return scale
