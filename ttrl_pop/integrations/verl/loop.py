"""verl's agent loop with a mind of its own for every sequence: B-Trans to the letter (arXiv 2512.25063).

The seed of the mind goes with the request as `extra_args`, and vLLM's worker (`sample/vllm/worker/seeded.py`) draws the
noise. The update reads through no noise; verl's rollout correction has the weights of what was sampled elsewhere.
"""

import secrets
from typing import Any

from verl.experimental.agent_loop.agent_loop import AgentLoopOutput, register
from verl.experimental.agent_loop.single_turn_agent_loop import SingleTurnAgentLoop

from ttrl_pop import randomness

MIND = "mind_seed"
"""Field of verl's batches with the seed of the mind that wrote a row; 0 is the mean mind."""


@register("minds")
class MindsAgentLoop(SingleTurnAgentLoop):  # type: ignore[misc]
    """One turn, written by a new mind: with the noise of a seed that no other sequence has."""

    async def run(self, sampling_params: dict[str, Any], **columns: Any) -> AgentLoopOutput:
        """
        Args:
            sampling_params: verl's; a greedy one (validation) is the mean mind's.
            columns: fields of the row; with `full_determinism`, its place in the batch and the step make the seed.
        """
        seed = 0 if sampling_params.get("temperature") == 0 else self._seed(columns)
        # A dict of its own: verl shares one between all rollouts of a prompt.
        minded = {**sampling_params, "extra_args": {**(sampling_params.get("extra_args") or {}), "mind": seed}}
        output = await super().run(minded, **columns)
        output.extra_fields[MIND] = seed
        return output

    def _seed(self, columns: dict[str, Any]) -> int:
        rollout = self.rollout_config
        if not rollout.full_determinism:
            return randomness.seed("mind", secrets.token_hex(16))
        place = [str(columns.get(name, "")) for name in ("global_steps", "index", "session_id", "priority")]
        return randomness.seed("mind", int(rollout.seed), *place)
