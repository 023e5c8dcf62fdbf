"""vLLM's engine: started, given adapters and minds, asked for tokens.

Importing this imports vLLM.
"""

import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

# Before vLLM is imported, which reads them then.
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
# stdout carries our data.
os.environ.setdefault("VLLM_LOGGING_STREAM", "ext://sys.stderr")
# vLLM reports to its makers unless told otherwise; that is for the user to ask for.
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")

from vllm import SamplingParams
from vllm.engine.arg_utils import EngineArgs
from vllm.inputs import TokensPrompt
from vllm.lora.request import LoRARequest
from vllm.platforms import current_platform
from vllm.sampling_params import RequestOutputKind
from vllm.usage.usage_lib import UsageContext
from vllm.v1.engine.exceptions import EngineDeadError
from vllm.v1.engine.llm_engine import LLMEngine
from vllm.v1.executor.abstract import Executor

from ttrl_pop.errors import EngineError, UsageError
from ttrl_pop.model.adapter_files import save_adapter
from ttrl_pop.ranks.ranks import current
from ttrl_pop.sample.backend import Weights
from ttrl_pop.sample.vllm.launch import Model, arguments, check, environment, short_reason, watch
from ttrl_pop.sample.vllm.options import VllmOptions
from ttrl_pop.sample.vllm.worker.norms import digest

MEMORY = Path("/dev/shm")
"""Where a file costs no disk, if it is there."""


@dataclass(frozen=True, slots=True)
class Order:
    """One completion to write."""

    prompt_ids: tuple[int, ...]
    slot: int
    salt: str
    """Requests of different salts share no cached prompt."""
    seed: int
    max_tokens: int
    temperature: float
    top_p: float
    stop_ids: tuple[int, ...]


@dataclass(slots=True)
class Written:
    """What has been written for an order so far."""

    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    cached: int = 0
    """Prompt tokens that were taken from the cache."""
    finished: bool = False


class Engine:
    """An engine of vLLM with one adapter, the policy's, and a table of minds."""

    def __init__(self, model: Model, options: VllmOptions) -> None:
        """Start vLLM.

        Raises:
            UsageError: vLLM refuses the model or a setting, or is asked for what minds do not go with.
        """
        self.options = options
        self.sites = len(model.sites)
        # Where this process is one of several, vLLM would take their group for its own.
        needed = options.tensor_parallel > 1 or current().size > 1
        self.inside = not (needed if options.own_process is None else options.own_process)
        if self.inside and options.tensor_parallel > 1:
            raise UsageError("backend_options.own_process must be true with tensor_parallel above 1")
        self.sleeps = model.shared_gpu if options.sleep is None else options.sleep
        if self.sleeps and current_platform.is_cpu():
            raise UsageError("backend_options.sleep: vLLM has no sleep mode on a CPU; leave it out")
        self.asleep = False
        self.weights = 0
        """Counts the times that all cached prompts were dropped: part of every salt."""
        self.adapter: Any = None
        self._adapters = 0
        self._requests = 0
        with environment(self.inside):
            try:
                given = EngineArgs(**arguments(model, options, self.sleeps))
                config = given.create_engine_config(UsageContext.LLM_CLASS)
            except (ValueError, TypeError) as error:
                raise UsageError(f"backend vllm refuses model {model.source!r}: {short_reason(error)}") from error
            check(config)
            self.longest = int(config.model_config.max_model_len)
            try:
                self.llm = LLMEngine(
                    vllm_config=config,
                    executor_class=Executor.get_class(config),
                    log_stats=False,
                    usage_context=UsageContext.LLM_CLASS,
                    multiprocess_mode=not self.inside,
                )
            except (ValueError, RuntimeError) as error:
                raise EngineError(f"vLLM did not start: {short_reason(error)}") from error
        if not self.inside:
            watch(self.llm)
        self.block = int(config.cache_config.block_size)
        """Tokens of a block of the prefix cache."""
        if self.sites:
            self._call("mind_arm")

    def load_adapter(self, adapter: Any) -> None:
        """Make a copy of peft's `adapter` the engine's only one, under a number that it has not had.

        Raises:
            EngineError: vLLM did not take it.
        """
        self._adapters += 1
        folder = Path(tempfile.mkdtemp(prefix="ttrl-pop-", dir=MEMORY if MEMORY.is_dir() else None))
        try:
            save_adapter(adapter, folder)
            request = LoRARequest(f"policy-{self._adapters}", self._adapters, str(folder))
            with alive():
                if self.adapter is not None:
                    self.llm.remove_lora(self.adapter.lora_int_id)
                self.llm.add_lora(request)
                held = set(self.llm.list_loras())
        finally:
            shutil.rmtree(folder)
        if held != {self._adapters}:
            raise EngineError(f"vLLM holds adapters {sorted(held)} where it was given number {self._adapters} alone")
        self.adapter = request

    def write_minds(self, offsets_SMD: torch.Tensor) -> None:
        """Make row m of every site the offset of slot m + 1.

        Raises:
            EngineError: a worker holds other numbers afterwards.
        """
        numbers = offsets_SMD.detach().to("cpu", torch.float32).contiguous().numpy().tobytes()
        expected = digest(numbers)
        for held in self._call("mind_write", numbers, offsets_SMD.shape[1]):
            if held != expected:
                raise EngineError(
                    f"a worker of vLLM holds other minds than it was sent (digest {held}, not {expected})"
                )

    def fill(self, slot: int | None) -> None:
        """All tokens to come belong to `slot`; None: each to the slot of its request."""
        self._call("mind_fill", slot)

    def forget(self) -> None:
        """Drop all cached prompts, for what the engine holds has changed.

        Raises:
            EngineError: some are in use.
        """
        with alive():
            if not self.llm.reset_prefix_cache():
                raise EngineError("vLLM's prefix cache cannot be reset: requests of an earlier policy are unfinished")
        self.weights += 1

    def sleep(self) -> None:
        """Leave the GPU to the learner, where the engine is to sleep; weights wait in the machine's memory."""
        if self.sleeps and not self.asleep:
            with alive():
                self.llm.sleep(level=1)
            self.asleep = True

    def wake(self) -> bool:
        """Take up the weights again; whether the engine had slept, after which minds must be written anew."""
        if not self.asleep:
            return False
        with alive():
            self.llm.wake_up()
        self.asleep = False
        if self.sites:
            self._call("mind_clear")
        return True

    def write(self, orders: Sequence[Order], weights: Weights) -> Iterator[tuple[int, Written]]:
        """Yield (index into `orders`, what is written) whenever a token was added; an order that the caller marks as
        finished gets no more.

        Raises:
            EngineError: the engine died, or wrote tokens whose mind it was not told.
        """
        lora = None if weights == "base" else self.adapter
        if self.sites:
            self._call("mind_tagged")
        # Index of each order by the name of its request.
        unfinished: dict[str, int] = {}
        all_written = [Written() for _ in orders]
        try:
            with alive():
                for index, order in enumerate(orders):
                    self._requests += 1
                    name = str(self._requests)
                    unfinished[name] = index
                    self.llm.add_request(name, _prompt(order), _params(order), lora_request=lora)
                while unfinished:
                    for output in self.llm.step():
                        if output.request_id not in unfinished:
                            continue
                        index = unfinished[output.request_id]
                        written = all_written[index]
                        _add(written, output)
                        yield index, written
                        if written.finished:
                            del unfinished[output.request_id]
                            if not output.finished:
                                self.llm.abort_request([output.request_id])
        finally:
            if unfinished:
                self._abort(list(unfinished))
        self._check_tagged(sum(len(written.ids) for written in all_written))

    def close(self) -> None:
        """End the engine and its processes."""
        self.llm.engine_core.shutdown()

    def _abort(self, names: list[str]) -> None:
        try:
            self.llm.abort_request(names)
        except EngineDeadError:
            # It is the reason for being here, and already on its way up.
            return

    def _check_tagged(self, tokens: int) -> None:
        if (
            self.sites
            and self.options.minds == "batched"
            and any(tagged < tokens for tagged in self._call("mind_tagged"))
        ):
            raise EngineError(
                "vLLM computed tokens whose mind it was not told: its scheduler is not the one that this backend "
                "knows; pass --set backend_options.minds=serial, or --backend hf"
            )

    def _call(self, method: str, *args: Any) -> list[Any]:
        with alive():
            results: list[Any] = self.llm.collective_rpc(method, args=args)
        return results


@contextmanager
def alive() -> Iterator[None]:
    """Turn the death of the engine's process into an error of ours.

    Raises:
        EngineError: it died.
    """
    try:
        yield
    except EngineDeadError as error:
        raise EngineError("vLLM's process died; what it last said is above. Go on with --resume") from error


def _prompt(order: Order) -> Any:
    return TokensPrompt(prompt_token_ids=list(order.prompt_ids), cache_salt=order.salt)


def _params(order: Order) -> Any:
    return SamplingParams(
        temperature=order.temperature,
        top_p=order.top_p,
        seed=order.seed,
        max_tokens=order.max_tokens,
        logprobs=0,
        stop_token_ids=list(order.stop_ids),
        ignore_eos=True,
        detokenize=False,
        output_kind=RequestOutputKind.DELTA,
        extra_args={"mind": order.slot},
    )


def _add(written: Written, output: Any) -> None:
    (completion,) = output.outputs
    written.ids += completion.token_ids
    written.logprobs += [
        position[token].logprob for token, position in zip(completion.token_ids, completion.logprobs, strict=True)
    ]
    written.cached = output.num_cached_tokens or 0
    written.finished = output.finished
