"""The table `backend_options` of the backend `vllm`, and what of vLLM's own settings is refused."""

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from ttrl_pop.config import Positive, Section
from ttrl_pop.errors import UsageError

RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""Ranks of adapters that vLLM makes room for."""

REFUSED = {
    "pipeline_parallel_size": "a mind's table would have to follow the batch from stage to stage",
    "speculative_config": "drafted tokens would be checked by another mind than the one that drafts them",
    "spec_method": "drafted tokens would be checked by another mind than the one that drafts them",
    "spec_model": "drafted tokens would be checked by another mind than the one that drafts them",
    "enable_dbo": "half batches would be written under the minds of the other half",
    "ubatch_size": "half batches would be written under the minds of the other half",
    "data_parallel_size": "each process of ttrl-pop has one engine",
    "prefill_context_parallel_size": "a rank would see a part of each sequence, its minds the whole",
    "decode_context_parallel_size": "a rank would see a part of each sequence, its minds the whole",
    "enable_hc_sp": "a rank would see a part of the tokens, its minds all of them",
    "kv_transfer_config": "cached prompts of one mind would reach another engine without its mind",
    "quantization": "the learner's weights are not quantised, so log-probabilities would not be those of the policy",
    "kv_cache_dtype": "the learner has no such cache, so log-probabilities would not be those of the policy",
}
"""Settings of vLLM under which minds, or their log-probabilities, would be wrong, and why."""
OURS = {
    "additional_config": "it tells compiled code of other minds apart",
    "distributed_executor_backend": "set backend_options.own_process",
    "dtype": "set dtype; the engine's is the learner's",
    "enable_lora": "it follows from the policy",
    "enable_sleep_mode": "set backend_options.sleep",
    "enforce_eager": "set backend_options.eager",
    "generation_config": "sampling has its own settings",
    "gpu_memory_utilization": "set backend_options.gpu_memory",
    "logprobs_mode": "the learner needs log-probabilities with the temperature applied",
    "max_lora_rank": "it follows from learn.lora.rank",
    "max_loras": "one policy has one adapter",
    "max_model_len": "set backend_options.max_model_len",
    "max_num_batched_tokens": "set backend_options.batch_tokens",
    "max_num_seqs": "set sampling.max_rows",
    "model": "set model; the engine's is the learner's",
    "skip_tokenizer_init": "texts are decoded by the learner's tokenizer",
    "tensor_parallel_size": "set backend_options.tensor_parallel",
    "tokenizer": "texts are decoded by the learner's tokenizer",
    "trust_remote_code": "code of a model is never run",
    "worker_cls": "the minds live in the worker",
}
"""Settings of vLLM that this backend makes itself, and what to do instead."""


class VllmOptions(Section):
    """The table `backend_options` of `vllm`."""

    minds: Literal["batched", "serial"] = "batched"
    """`batched`: a mind for each request of a batch; `serial`: all requests of one mind, then those of the next. Serial
    needs nothing of vLLM's scheduler, and is slower."""
    slots: Positive = 64
    """Minds that the tables hold; more of them take turns."""
    tensor_parallel: Positive = 1
    """GPUs over which the engine's weights are spread."""
    own_process: bool | None = None
    """Whether the engine runs in a process of its own; None: only where tensor_parallel or several
    processes of a run need it."""
    gpu_memory: Annotated[float, Field(gt=0, le=1)] = 0.4
    """Share of a GPU's memory that the engine takes, its weights included; the learner needs the rest."""
    cpu_cache: Annotated[float, Field(gt=0)] = 1.0
    """GiB of keys and values that the engine holds on a CPU."""
    sleep: bool | None = None
    """Whether the engine's weights leave the GPU while the policy learns; None: where both share one."""
    eager: bool | None = None
    """Whether the engine runs without compiled code and CUDA graphs; None: on a CPU."""
    max_model_len: Positive | None = None
    """Longest sequence of the engine; None: the model's, at most 32768."""
    batch_tokens: Positive | None = None
    """Tokens of one forward of the engine; None: vLLM's choice."""
    engine: dict[str, Any] = Field(default_factory=dict)
    """Any other engine argument of vLLM, by its name there."""

    @field_validator("engine")
    @classmethod
    def _known_to_be_right(cls, value: dict[str, Any]) -> dict[str, Any]:
        for name, given in value.items():
            if name in REFUSED and given not in (None, False, 1, "auto"):
                raise ValueError(f"{name} is refused: {REFUSED[name]}")
            if name in OURS:
                raise ValueError(f"{name} is not yours to set: {OURS[name]}")
        return value


def room_for(rank: int) -> int:
    """The rank that vLLM makes room for where adapters have `rank`.

    Raises:
        UsageError: it is above all of them.
    """
    found = next((each for each in RANKS if each >= rank), None)
    if found is None:
        raise UsageError(f"vLLM takes adapters of rank up to {RANKS[-1]}, got {rank}")
    return found
