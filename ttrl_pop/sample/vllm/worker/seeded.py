"""vLLM's worker for clients that know seeds alone: it draws the noise of a mind when a request first names it.

    vllm serve MODEL --no-enable-prefix-caching --worker-cls ttrl_pop.sample.vllm.worker.seeded.SeededWorker \
      --additional-config '{"ttrl_pop": {"sigma": 0.005}}'

A request names its mind by `extra_args={"mind": SEED}`; over HTTP that is `vllm_xargs`. Without one, and with seed 0,
the model itself writes. The noise is that of `ttrl_pop.population` with the same seed and sigma: mu is zero.

Simplification: no prefix cache, in which a mind would read what another mind has read.
"""

from typing import Any

from ttrl_pop.sample.vllm.worker.norms import Minds
from ttrl_pop.sample.vllm.worker.seeds import SeededMinds, noise_of
from ttrl_pop.sample.vllm.worker.worker import SETTINGS, MindWorker


class SeededWorker(MindWorker):
    """vLLM's worker with minds by their seeds."""

    def load_model(self, **kwargs: Any) -> None:
        if self.vllm_config.cache_config.enable_prefix_caching:
            raise ValueError("minds by seed need enable_prefix_caching=false: a mind would read another's cache")
        self.vllm_config.additional_config[SETTINGS].setdefault("sites", ["by seed"])
        super().load_model(**kwargs)

    def table(self, model: Any, settings: dict[str, Any], tokens: int) -> Minds:
        noise = noise_of(self.vllm_config.model_config.hf_config, float(settings["sigma"]))
        return SeededMinds(model, noise, self.vllm_config.scheduler_config.max_num_seqs, tokens, self.device)
