"""vLLM's worker for clients that know seeds and names alone: it draws a mind when a request first names it.

    vllm serve MODEL --additional-config '{"ttrl_pop": {"sigma": 0.005}}'
    vllm serve MODEL --additional-config '{"ttrl_pop": {"folder": "/shared/policies"}}'

A request names its mind by `extra_args = {"mind": SEED}`; over HTTP that is `vllm_xargs`. With a folder it also names
the population, `"population": "policy-…"` (`ttrl_pop.sample.vllm.policy_files`); with sigma alone, the noise is that of
`ttrl_pop.population` with the same seed and sigma, and mu is zero. Without a mind the model itself writes.
"""

import functools
from pathlib import Path
from typing import Any

from ttrl_pop.sample.vllm.plugin import SALTED, SETTINGS
from ttrl_pop.sample.vllm.policy_files import read_population
from ttrl_pop.sample.vllm.worker.norms import Minds
from ttrl_pop.sample.vllm.worker.seeds import SeededMinds, noise_of
from ttrl_pop.sample.vllm.worker.worker import MindWorker

POPULATIONS = 4
"""Populations of a folder that stay in memory."""


class SeededWorker(MindWorker):
    """vLLM's worker with minds by their seeds."""

    # Requests of one batch may have an adapter or none.
    shares_adapter = False

    def load_model(self, **kwargs: Any) -> None:
        settings = self.vllm_config.additional_config[SETTINGS]
        if self.vllm_config.cache_config.enable_prefix_caching and not settings.get(SALTED):
            raise ValueError(
                "a mind would read what another has cached: the plug-in of ttrl-pop is not loaded (is its name in "
                "VLLM_PLUGINS?); load it, or pass --no-enable-prefix-caching"
            )
        settings.setdefault("sites", ["by seed"])
        super().load_model(**kwargs)

    def table(self, model: Any, settings: dict[str, Any], tokens: int) -> Minds:
        own = noise_of(self.vllm_config.model_config.hf_config, float(settings.get("sigma", 0)))
        if "folder" in settings:
            read = functools.lru_cache(POPULATIONS)(functools.partial(read_population, Path(settings["folder"])))
        else:
            read = None

        def population(name: str) -> Any:
            return own if read is None else read(name)

        slots = self.vllm_config.scheduler_config.max_num_seqs
        return SeededMinds(model, own.sites, slots, tokens, self.device, population)
