"""What vLLM loads by itself where this package is installed (`vllm.general_plugins`): minds for `vllm serve`.

It changes nothing of an engine whose `--additional-config` does not name minds by their seeds. Of one that does,

1. the worker is the one that draws minds, and log-probabilities are those that tokens were drawn from;
2. a request that names no mind that there could be, of this model, is refused before it reaches the engine;
3. cached prompts are shared within one mind of one population only: both are part of the salt of the cache;
4. an adapter that is not loaded yet is found in the folder of policies by its name, and only if it is what its name
   says.
"""

from collections.abc import Callable
from functools import lru_cache, wraps
from pathlib import Path
from typing import Any, NamedTuple

SETTINGS = "ttrl_pop"
"""Key of our settings in vLLM's `additional_config`, which is part of the key of its compile cache."""
SALTED = "salted"
"""Key, among them, of whether this plug-in keeps cached prompts of minds apart."""
WORKER = "ttrl_pop.sample.vllm.worker.seeded.SeededWorker"

REFUSED = (
    *("pipeline_parallel_size", "speculative_config", "prefill_context_parallel_size", "decode_context_parallel_size"),
    *("kv_transfer_config", "ubatch_size", "enable_hc_sp"),
)
"""Settings of vLLM that do not go with minds (`ttrl_pop.sample.vllm.options` says why of each)."""


class Norms(NamedTuple):
    """The norms of a model that minds can shift."""

    sites: tuple[str, ...]
    width: int


def register() -> None:
    """Make this process's vLLM know minds by their seeds; called by vLLM in each of its processes, maybe twice."""
    from vllm.engine.arg_utils import EngineArgs
    from vllm.v1.engine.input_processor import InputProcessor

    if not hasattr(EngineArgs.create_engine_config, "__wrapped__"):
        EngineArgs.create_engine_config = _configured(EngineArgs.create_engine_config)
        InputProcessor.process_inputs = _told_apart(InputProcessor.process_inputs)


def by_seed(additional: Any) -> dict[str, Any] | None:
    """Our settings of an engine that has minds by their seeds; None of any other."""
    settings = additional.get(SETTINGS) if isinstance(additional, dict) else None
    return settings if isinstance(settings, dict) and settings.keys() & {"sigma", "folder"} else None


def mind_of(
    extra: dict[str, Any] | None, settings: dict[str, Any], norms: Callable[[], Norms]
) -> tuple[str, int] | None:
    """The population and the seed that a request names; None where it names no mind.

    Args:
        norms: those of the server's model, asked for where there is a population to hold against them.

    Raises:
        ValueError: there can be no such mind.
    """
    extra = extra or {}
    seed, name = extra.get("mind"), extra.get("population")
    if seed is None:
        if name is not None:
            raise ValueError("a request that names a population names a mind of it too")
        return None
    if type(seed) is not int or not 0 <= seed < 2**63:
        raise ValueError(f"a mind is a seed, an integer from 0 to 2^63 - 1, got {seed!r}")
    if "folder" not in settings:
        if name is not None:
            raise ValueError(f"this server has one population and no folder of others, got population {name!r}")
        return "", seed
    if name is None:
        raise ValueError("a mind of this server needs a population: the name of a policy in its folder")
    if not isinstance(name, str):
        raise ValueError(f"a policy is named by a text, got {name!r}")
    from ttrl_pop.sample.vllm.policy_files import is_there

    folder = Path(settings["folder"])
    # What has been withdrawn is looked for again, and not found.
    check = _check if is_there(folder, name) else _check.__wrapped__
    check(folder, name, norms())
    return name, seed


@lru_cache(16)
def _check(folder: Path, name: str, norms: Norms) -> None:
    """Find a policy and its minds, once and not for each of their requests: in the worker, where they are drawn, an
    error would end the engine for everybody.

    Raises:
        ValueError: it is not what its name says, or none of this model.
    """
    from ttrl_pop.sample.vllm.policy_files import read_population

    noise = read_population(folder, name)
    foreign = [site for site in noise.sites if site not in norms.sites]
    if foreign:
        raise ValueError(
            f"{name} shifts {foreign[0]!r}, which is no norm of this server's model; start it with the run's model"
        )
    if (width := noise.mu.shape[1]) != norms.width:
        raise ValueError(
            f"{name} shifts norms {width} wide, those of this server's model are {norms.width} wide; start it with the "
            "run's model"
        )


def check_adapter(lora: Any, settings: dict[str, Any]) -> None:
    """Look for the files of the adapter that a request names: where another one has taken its room, vLLM reads them
    again, and an error would then end the engine for everybody.

    Args:
        lora: vLLM's request for an adapter, or None.

    Raises:
        ValueError: it has been withdrawn.
    """
    from ttrl_pop.sample.vllm.policy_files import is_there

    if lora is None or "folder" not in settings:
        return
    path = Path(lora.lora_path)
    if path.parent == Path(settings["folder"]) and not is_there(path.parent, path.name):
        raise ValueError(f"{path.name} has been withdrawn from the folder of policies")


def _configured(original: Any) -> Any:
    """vLLM's making of a configuration, which then goes with minds."""

    @wraps(original)
    def create_engine_config(self: Any, *args: Any, **kwargs: Any) -> Any:
        settings = by_seed(self.additional_config)
        if settings is None:
            return original(self, *args, **kwargs)
        if self.worker_cls not in ("auto", WORKER):
            raise ValueError(f"minds live in the worker {WORKER}; leave --worker-cls out")
        for name in REFUSED:
            if (given := getattr(self, name, None)) not in (None, False, 1):
                raise ValueError(f"{name} does not go with minds, got {given!r}; leave it out")
        self.worker_cls = WORKER
        self.logprobs_mode = "processed_logprobs"
        settings[SALTED] = True
        if "folder" in settings:
            _find_adapters(Path(settings["folder"]))
        return original(self, *args, **kwargs)

    return create_engine_config


def _told_apart(original: Any) -> Any:
    """vLLM's reading of a request, whose mind is then part of the salt of its cached prompt."""
    from vllm.exceptions import VLLMValidationError

    @wraps(original)
    def process_inputs(self: Any, request_id: str, prompt: Any, params: Any, *args: Any, **kwargs: Any) -> Any:
        settings = by_seed(self.vllm_config.additional_config)

        def norms() -> Norms:
            if not hasattr(self, "mind_norms"):
                self.mind_norms = norms_of(self.vllm_config.model_config.hf_config)
            found: Norms = self.mind_norms
            return found

        try:
            mind = None if settings is None else mind_of(getattr(params, "extra_args", None), settings, norms)
            if settings is not None:
                check_adapter(kwargs.get("lora_request"), settings)
        except ValueError as error:
            # What vLLM takes for the client's fault and answers with 400.
            raise VLLMValidationError(str(error)) from error
        request = original(self, request_id, prompt, params, *args, **kwargs)
        if mind is not None:
            request.cache_salt = f"{request.cache_salt or ''}|{mind[0]}|{mind[1]}"
        return request

    return process_inputs


def norms_of(config: Any) -> Norms:
    """The norms of models of `config`."""
    from ttrl_pop.sample.vllm.worker.seeds import noise_of

    noise = noise_of(config, 0.0)
    return Norms(noise.sites, noise.mu.shape[1])


def _find_adapters(folder: Path) -> None:
    """Let vLLM look for adapters that it does not know in the folder of policies."""
    from vllm.lora.request import LoRARequest
    from vllm.lora.resolver import LoRAResolver, LoRAResolverRegistry

    from ttrl_pop.sample.vllm.policy_files import ADAPTER, find

    class Policies(LoRAResolver):  # type: ignore[misc]
        """Adapters of a folder of policies, by their names."""

        async def resolve_lora(self, base_model_name: str, lora_name: str) -> LoRARequest | None:
            try:
                path = find(folder, lora_name)
            except ValueError:
                return None
            if not (path / ADAPTER).is_file():
                return None
            # vLLM gives it a number of its own.
            return LoRARequest(lora_name=lora_name, lora_path=str(path), lora_int_id=1)

    LoRAResolverRegistry.register_resolver("ttrl-pop", Policies())
