"""B-Trans: a Gaussian offset after every norm layer, drawn once per sequence and frozen (arXiv 2512.25063).

    y = Norm(x) + z,   z = mu + sigma · eps,   eps ~ N(0, I) a pure function of (mind seed, site)

Departures from the paper:
1. mu and log sigma are parameters with a gradient (mean-field Gaussian, reparameterised); the paper fixes mu = 0 and
   sigma = 0.02 and names that as its limit. KL to the prior N(0, sigma0²) is available in closed form.
2. sigma = "auto" is found on the user's problems (`ttrl_pop.fit.sigma`): no absolute value travels between models.
3. A mind may answer many problems; the paper draws anew for every sequence. `level = "token"` is its ablation: an
   offset for every token of a sequence.

Sites are the norms over the hidden size, found by name and width; norms of queries and keys are left alone even
where they are as wide as the hidden size.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from ttrl_pop import randomness
from ttrl_pop.errors import UsageError
from ttrl_pop.kernels.norms import AddOffset
from ttrl_pop.population.base import MEAN, Lack, Population
from ttrl_pop.population.options import NormNoiseOptions
from ttrl_pop.types import Metrics, Mind


class NormNoise(Population):
    """Minds that differ by an offset after every norm layer.

    Parameters: `mu` [S, D] and `log_sigma` [S, D] or [S, 1], for S sites of width D, in float32 or wider."""

    Options = NormNoiseOptions
    options: NormNoiseOptions
    sigma0: Tensor
    mu: nn.Parameter
    log_sigma: nn.Parameter

    LARGEST_CACHE: ClassVar[int] = 2**26
    """Numbers of standard noise that are kept: 256 MB in float32."""

    def __init__(self, options: NormNoiseOptions) -> None:
        super().__init__(options)
        self.sites: tuple[str, ...] = ()
        self._eps: dict[int, Tensor] = {}
        self._offsets: list[Tensor] | None = None
        self._row_N: Tensor | None = None
        """Row of each token in the offsets of every site."""
        self._scale_seen = -1
        """Version of `sigma0` when it was last looked at."""
        self._has_scale = False
        self._table: tuple[object, list[Tensor]] | None = None

    @classmethod
    def of(cls, sites: Sequence[str], mu: Float[Tensor, "S D"], log_sigma: Float[Tensor, "S E"]) -> "NormNoise":
        """The minds that these numbers make, for an engine that has the model: no network is attached.

        Args:
            log_sigma: [S, D], or [S, 1] where all dimensions of a site share one.
        """
        noise = cls(NormNoiseOptions())
        noise.sites = tuple(sites)
        noise.mu, noise.log_sigma = nn.Parameter(mu), nn.Parameter(log_sigma)
        noise.register_buffer("sigma0", log_sigma.mean().exp())
        return noise

    @property
    def lacks(self) -> Lack | None:
        # Asked for every forward, and a look at the buffer stops a GPU: looked at once for each value.
        if self._scale_seen != self.sigma0._version:
            self._scale_seen = self.sigma0._version
            self._has_scale = bool(torch.isfinite(self.sigma0))
        return None if self._has_scale else "scale"

    def set_scale(self, sigma: float) -> None:
        with torch.no_grad():
            self.sigma0.fill_(sigma)
            self.log_sigma.fill_(math.log(sigma) if sigma > 0 else -math.inf)
            self.mu.zero_()
        # log 0 has no useful gradient: a population without spread keeps none.
        self.log_sigma.requires_grad_(sigma > 0)

    def restart(self) -> None:
        if not self.lacks:
            self.set_scale(float(self.sigma0))

    def attach(self, network: nn.Module) -> None:
        """Find the sites, allocate mu and log sigma, and hook every site.

        Raises:
            UsageError: the model has no norm over its hidden size, or none of those that `sites` names.
        """
        norms = dict(norm_sites(network))
        if not norms:
            raise UsageError(
                f"population norm-noise needs norm layers over the hidden size; {type(network).__name__} has none"
            )
        self.sites = chosen_sites(tuple(norms), self.options.sites)
        if not self.sites:
            raise UsageError(
                f"population.options.sites must leave some norm, got {self.options.sites!r}, of which "
                f'{type(network).__name__} has none; set it to "all"'
            )
        final = [*norms][final_site([*norms])]
        width = hidden_size(network)
        weight = next(network.parameters())
        dtype = torch.promote_types(weight.dtype, torch.float32)
        spread = width if self.options.spread == "dim" else 1
        self.mu = nn.Parameter(torch.zeros(len(self.sites), width, dtype=dtype, device=weight.device))
        self.log_sigma = nn.Parameter(torch.zeros(len(self.sites), spread, dtype=dtype, device=weight.device))
        self.register_buffer("sigma0", torch.tensor(math.nan, dtype=dtype, device=weight.device))
        if self.options.sigma != "auto":
            self.set_scale(self.options.sigma)
        if not self.options.final_mu and final in self.sites:
            learns_S1 = torch.ones(len(self.sites), 1, dtype=dtype, device=weight.device)
            learns_S1[self.sites.index(final)] = 0
            self.mu.register_hook(lambda gradient_SD: gradient_SD * learns_S1)  # type: ignore[no-untyped-call]
        for index, site in enumerate(self.sites):
            norms[site].register_forward_hook(AddOffset(partial(self._rows, index)))

    @torch.no_grad()
    def decay(self) -> bool:
        if self.options.decay == 1 or self.lacks:
            return False
        self.log_sigma.add_(math.log(self.options.decay))
        return True

    @contextmanager
    def embody(
        self, minds_M: Sequence[Mind], mind_N: Int[Tensor, "N"], positions_N: Int[Tensor, "N"]
    ) -> Iterator[None]:
        outer = (self._offsets, self._row_N)
        self.assume(minds_M, mind_N, positions_N)
        try:
            yield
        finally:
            self._offsets, self._row_N = outer

    def assume(self, minds_M: Sequence[Mind], mind_N: Int[Tensor, "N"], positions_N: Int[Tensor, "N"]) -> None:
        """Inside of `embody`, let other tokens come next: from now on these are read, as `embody` takes them."""
        if self.lacks:
            raise UsageError('sigma is "auto" and has not been calibrated; pass a number or calibrate first')
        seeds = tuple(mind.seed for mind in minds_M)
        length = 1 if self.options.level == "sequence" else int(positions_N.max()) + 1
        self._offsets = self._noise(seeds, length)
        # Offsets have a row for each mind, or for each mind and position.
        self._row_N = mind_N if length == 1 else mind_N * length + positions_N

    def reader(self, mind: Mind) -> Mind:
        return mind if self.options.scope == "sequence" else MEAN

    @torch.no_grad()
    def offsets(self, minds: Sequence[Mind]) -> Float[Tensor, "S M D"]:
        """z of each mind at each site, in the order of `sites`, for an engine with a model of its own."""
        if self.lacks:
            raise UsageError('sigma is "auto" and has not been calibrated; pass a number or calibrate first')
        return torch.stack(self._noise(tuple(mind.seed for mind in minds), 1))

    def kl_to_prior(self) -> Float[Tensor, ""]:
        if float(self.sigma0) == 0:
            return self.mu.new_zeros(())
        return gaussian_kl(self.mu, self.log_sigma.expand_as(self.mu), self.sigma0).mean()

    def held(self) -> object:
        return self._table

    def forget(self) -> None:
        """Let go of offsets that are kept, where parameters may have changed in a way that leaves no trace."""
        self._table = None

    def metrics(self) -> Metrics:
        with torch.no_grad():
            return {
                "population/sigma": float(self.log_sigma.mean().exp()),
                "population/mu_rms": float(self.mu.square().mean().sqrt()),
                "population/kl_prior": float(self.kl_to_prior()),
            }

    def standard_noise(self, seed: int, length: int = 1) -> Float[Tensor, "S L D"]:
        """eps of one mind: float32 on the CPU's stream, so that every device and backend draws the same.

        A longer draw begins with the shorter one. Seed 0, the mean mind, is zero everywhere.
        """
        kept = self._eps.get(seed)
        if kept is not None and kept.shape[1] >= length:
            return kept[:, :length]
        sites, width = self.mu.shape
        # A sequence grows token by token: drawing twice as far as before keeps the work linear in its length.
        wanted, length = length, max(length, 2 * kept.shape[1] if kept is not None else 1)
        if seed == MEAN.seed:
            draw = np.zeros((sites, length, width), np.float32)
        else:
            keys = [("noise", seed, site) for site in self.sites]
            draw = randomness.normals(keys, length * width).reshape(sites, length, width)
        if sum(eps.numel() for eps in self._eps.values()) + draw.size > self.LARGEST_CACHE:
            self._eps.clear()
        self._eps[seed] = torch.from_numpy(draw).to(self.mu.device, self.mu.dtype)
        return self._eps[seed][:, :wanted]

    def _noise(self, seeds: tuple[int, ...], length: int) -> list[Tensor]:
        """Offsets of each site, [M · L, D] for M minds and L positions."""
        # In-place updates raise a tensor's version: offsets are computed once for each setting of the parameters.
        key = (seeds, length, self.mu._version, self.log_sigma._version)
        if not torch.is_grad_enabled() and self._table is not None and self._table[0] == key:
            return self._table[1]
        eps = torch.stack([self.standard_noise(seed, length) for seed in seeds], dim=1)
        z = self.mu[:, None, None, :] + self.log_sigma.exp()[:, None, None, :] * eps
        offsets = list(z.flatten(1, 2).unbind(0))
        if not torch.is_grad_enabled():
            self._table = (key, offsets)
        return offsets

    def _rows(self, index: int, _count: int) -> tuple[Tensor, Tensor] | None:
        """The offsets of a site, and the row of each token in them; None where no mind is embodied."""
        if self._offsets is None or self._row_N is None:
            return None
        return self._offsets[index], self._row_N


def hidden_size(network: nn.Module) -> int:
    """Width of the residual stream."""
    config: Any = network.config
    return int(config.get_text_config().hidden_size)


def norm_sites(network: nn.Module) -> list[tuple[str, nn.Module]]:
    """The norm layers over the hidden size by name, in the order of the modules; norms of queries and keys left out."""
    width = hidden_size(network)
    sites = []
    for name, module in network.named_modules():
        weight = getattr(module, "weight", None)
        kind = type(module).__name__.lower()
        leaf = name.rpartition(".")[2].lower()
        if "norm" not in kind or not isinstance(weight, Tensor) or any(True for _ in module.children()):
            continue
        if tuple(weight.shape) == (width,) and not leaf.startswith(("q_", "k_", "query_", "key_")):
            sites.append((name, module))
    return sites


def final_site(sites: Sequence[str]) -> int:
    """Index of the norm before the LM head: the last one outside of the numbered layers."""
    outside = [index for index, name in enumerate(sites) if _layer(name) is None]
    return outside[-1] if outside else len(sites) - 1


def chosen_sites(norms: Sequence[str], sites: str) -> tuple[str, ...]:
    """The sites that `population.options.sites` names among a model's norms, in their order."""
    layers: dict[int, list[str]] = {}
    for name in norms:
        if (layer := _layer(name)) is not None:
            layers.setdefault(layer, []).append(name)
    if sites == "all":
        return tuple(norms)
    if sites == "last-third":
        first = sorted(layers)[-max(1, round(len(layers) / 3))] if layers else 0
        early = {name for layer, own in layers.items() if layer < first for name in own}
        return tuple(name for name in norms if name not in early)
    place = ("input", "post-attention").index(sites)
    return tuple(own[place] for own in layers.values() if len(own) > place)


def _layer(name: str) -> int | None:
    """Number of the layer that a module is part of; None where it stands outside of them."""
    return next((int(part) for part in name.split(".") if part.isdigit()), None)


def gaussian_kl(
    mu: Float[Tensor, "*D"], log_sigma: Float[Tensor, "*D"], sigma0: Float[Tensor, ""]
) -> Float[Tensor, "*D"]:
    """KL(N(mu, sigma²) ‖ N(0, sigma0²)) per dimension, in nats:
    log(sigma0/sigma) + (sigma² + mu²)/(2 sigma0²) − 1/2."""
    variance = (2 * log_sigma).exp()
    return sigma0.log() - log_sigma + (variance + mu.square()) / (2 * sigma0.square()) - 0.5
