"""How vLLM is started: its settings, what is refused, the watch over its process."""

import multiprocessing.connection
import os
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from vllm.config import VllmConfig
from vllm.platforms import current_platform
from vllm.v1.engine.exceptions import EngineDeadError

from ttrl_pop import __version__
from ttrl_pop.errors import UsageError
from ttrl_pop.sample.vllm.options import VllmOptions, room_for
from ttrl_pop.sample.vllm.plugin import SETTINGS
from ttrl_pop.sample.vllm.worker.worker import OWNER

LONGEST = 32768
"""Tokens of a sequence that the engine makes room for where nothing is said."""

CPU_BLOCK = 32
"""Tokens of a block of the prefix cache on a CPU: the smallest that its attention is made for; 128 is the default, and
a prompt shorter than a block is never shared."""

LAST_CALLS = 50
"""How long, in tenths of a second, pending calls to a dead engine are still failed."""


@dataclass(frozen=True, slots=True)
class Model:
    """What the engine is to run."""

    source: str
    dtype: str
    context_length: int
    sites: tuple[str, ...]
    """Norms that minds shift; none without a population."""
    rank: int | None
    """Rank of the adapter; None without one."""
    rows: int
    """Requests that are written together."""
    shared_gpu: bool
    """Whether the learner is on a GPU."""


def arguments(model: Model, options: VllmOptions, sleeps: bool) -> dict[str, Any]:
    """vLLM's engine arguments.

    Raises:
        UsageError: the adapter's rank is above all that vLLM makes room for.
    """
    on_cpu = current_platform.is_cpu()
    minds = {"version": __version__, "slots": options.slots, "sites": list(model.sites)}
    chosen: dict[str, Any] = {
        "model": model.source,
        "dtype": model.dtype,
        "tensor_parallel_size": options.tensor_parallel,
        "distributed_executor_backend": "uni" if options.tensor_parallel == 1 else "mp",
        "worker_cls": "ttrl_pop.sample.vllm.worker.worker.MindWorker",
        "additional_config": {SETTINGS: minds},
        "enforce_eager": on_cpu if options.eager is None else options.eager,
        "max_model_len": options.max_model_len or min(model.context_length, LONGEST),
        "max_num_seqs": model.rows,
        "logprobs_mode": "processed_logprobs",
        "skip_tokenizer_init": True,
        "trust_remote_code": False,
        "generation_config": "vllm",
        "enable_prefix_caching": True,
        "enable_sleep_mode": sleeps,
        "gpu_memory_utilization": options.gpu_memory,
        "disable_log_stats": True,
        "use_tqdm_on_load": False,
    }
    if options.batch_tokens is not None:
        chosen["max_num_batched_tokens"] = options.batch_tokens
    if model.rank is not None:
        chosen |= {"enable_lora": True, "max_loras": 1, "max_cpu_loras": 1, "max_lora_rank": room_for(model.rank)}
    if on_cpu:
        chosen |= {"kv_cache_memory_bytes": int(options.cpu_cache * 2**30), "block_size": CPU_BLOCK}
    return {**chosen, **options.engine}


def check(config: VllmConfig) -> None:
    """Refuse what vLLM's configuration came to, where minds do not go with it.

    Raises:
        UsageError: a model with state beside its cache, or a pass that cuts sequences.
    """
    if config.model_config.is_hybrid or config.model_config.is_attention_free:
        raise UsageError("backend vllm does not know minds in models with recurrent state; use --backend hf")
    # By its name in earlier versions of vLLM; later ones have no such pass.
    if getattr(config.compilation_config.pass_config, "enable_sp", False):
        raise UsageError(
            "backend vllm: sequence parallelism is refused: a rank would see a part of the tokens, the index of minds "
            "all of them"
        )


@contextmanager
def environment(inside: bool) -> Iterator[None]:
    """While active, vLLM can be started: it takes some settings from environment variables, and on a CPU it changes how
    many threads torch uses, which is undone."""
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0" if inside else "1"
    os.environ[OWNER] = str(os.getpid())
    threads, set_threads = torch.get_num_threads(), torch.set_num_threads
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        torch.set_num_threads = set_threads
        torch.set_num_threads(threads)


def watch(llm: Any) -> None:
    """Let whoever waits for an engine's process know when it has died: killed, it says nothing, and vLLM 0.32 waits for
    its answer for ever."""
    client = llm.engine_core

    def wait() -> None:
        multiprocessing.connection.wait([process.sentinel for process in client.resources.engine_manager.processes])
        # From here on nothing more is sent; what was on its way is answered once and again, until it has all come in.
        client.resources.engine_dead = True
        client.outputs_queue.put(EngineDeadError())
        for _ in range(LAST_CALLS):
            for answer in list(client.utility_results.values()):
                if not answer.done():
                    answer.set_exception(EngineDeadError())
            time.sleep(0.1)

    threading.Thread(target=wait, daemon=True).start()


def short_reason(error: BaseException) -> str:
    """The line of an error that says why; pydantic, with which vLLM checks, puts a heading above it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return next((line for line in lines if line.startswith("Value error")), lines[0])
