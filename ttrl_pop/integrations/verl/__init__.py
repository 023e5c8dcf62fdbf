"""verl: the majority as a reward manager, and an agent loop with a mind for every sequence.

    VERL_USE_EXTERNAL_MODULES=ttrl_pop.integrations.verl python -m verl.trainer.main_ppo \
      hydra.searchpath=[pkg://ttrl_pop.integrations.verl] +recipe=minds \
      actor_rollout_ref.model.path=Qwen/Qwen2.5-1.5B-Instruct data.train_files=problems.parquet

recipe/minds.yaml goes over verl's own PPO settings: GRPO, the majority, minds. Imported, this module
registers what the recipe names.

verl trains on GPUs alone: this has been tested against verl's classes, a fake server, and vLLM on a CPU, and has not
trained a model.
"""

from ttrl_pop.integrations.verl.loop import MindsAgentLoop
from ttrl_pop.integrations.verl.reward import MajorityRewardManager

__all__ = ["MajorityRewardManager", "MindsAgentLoop"]
