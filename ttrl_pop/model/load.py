"""A name → a loaded model and its tokenizer.

Of what a model brings only data is read, never code: where it needs code of its own it is refused.
"""

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.models.auto.tokenization_auto import get_tokenizer_config

from ttrl_pop.errors import UsageError
from ttrl_pop.model.gguf import whole
from ttrl_pop.model.minded import OFFSET, add_offsets, offsets_in, settings_of
from ttrl_pop.model.refusals import code_refused, loading, quiet_transformers, reason
from ttrl_pop.model.source import locate, peek

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float64": torch.float64}

VOCABULARIES = ("tokenizer*.json", "*.model", "vocab*", "*.tiktoken", "tekken.json")
"""Files of which one holds a tokenizer's vocabulary; a name of settings alone, `tokenizer_config.json`, is none."""

UNPACKED = ("mxfp4", "fp8")
"""Ways of packing weights that transformers can undo while it loads them."""


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A network, its tokenizer, and what is known of both."""

    network: Any
    """A transformers causal language model in eval mode, no parameter of which requires a gradient."""
    tokenizer: Any
    context_length: int
    eos_ids: frozenset[int]
    fingerprint: str
    """Hash over names, shapes and a sample of the values of all weights: tells models apart, not a checksum."""
    source: str | None = None
    """Folder or hub id that the weights were read from; None for a model made in memory."""
    notices: tuple[str, ...] = ()
    """What the user should know of how it was loaded."""


def load_model(
    name: str, device: str = "auto", dtype: str = "auto", stage: Callable[[str], object] = lambda text: None
) -> LoadedModel:
    """Load `name` onto `device` (`auto`: CUDA, else Apple's MPS, else CPU) as `dtype`.

    `auto` is float32 on the CPU, where bf16 is the slow type, else bfloat16.

    Args:
        stage: is told in a line of what may take long, as it begins.

    Raises:
        UsageError: there is no such model, it lacks weights or a tokenizer, or the device is not there.
    """
    where = resolve_device(device)
    kind = resolve_dtype(dtype, where)
    source = locate(name, stage)
    stage(f"loading {name}")
    quiet_transformers()
    what = f"model {name!r} cannot be loaded"
    with loading(what):
        # In this order: what can be known of a model from its settings is known before gigabytes are read.
        config, sites, tokenizer, notices = _described(source, name, what)
        network, info = transformers.AutoModelForCausalLM.from_pretrained(
            source,
            config=config,
            dtype=kind,
            trust_remote_code=False,
            # Not what the model's settings name, which may be a kernel to be downloaded and run.
            attn_implementation=None,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
        _check_whole(network, info, what)
        add_offsets(network, source, sites)
        network = network.to(where).eval().requires_grad_(False)
        return LoadedModel(
            network=network,
            tokenizer=tokenizer,
            context_length=_context_length(network.config),
            eos_ids=_eos_ids(network, tokenizer),
            fingerprint=fingerprint(network),
            source=source,
            notices=notices,
        )


def outline_model(name: str, device: str = "auto", dtype: str = "auto") -> LoadedModel:
    """`name` without its weights: the network is on the device `meta`, where tensors have shapes alone.

    Raises:
        UsageError: as `load_model` raises it, as far as no weights are looked at.
    """
    kind = resolve_dtype(dtype, resolve_device(device))
    source, gguf = peek(name)
    quiet_transformers()
    what = f"model {name!r} cannot be loaded"
    with loading(what):
        config, _, tokenizer, notices = _described(source, name, what, gguf)
        with torch.device("meta"):
            network = transformers.AutoModelForCausalLM.from_config(config, dtype=kind, trust_remote_code=False)
        return LoadedModel(
            network=network.eval().requires_grad_(False),
            tokenizer=tokenizer,
            context_length=_context_length(network.config),
            eos_ids=_eos_ids(network, tokenizer),
            fingerprint="",
            source=source,
            notices=notices,
        )


def _described(
    source: str, name: str, what: str, gguf: str | None = None
) -> tuple[Any, tuple[str, ...], Any, tuple[str, ...]]:
    """Settings of a model, its norms that hold a mind, and its tokenizer, checked, and what the user should know.

    Args:
        gguf: name of the file in `source` that has them, where it is no folder of transformers'.
    """
    file = {"gguf_file": gguf} if gguf else {}
    sites: tuple[str, ...] = ()
    if gguf:
        with whole(Path(source) / gguf):
            config = transformers.AutoConfig.from_pretrained(source, trust_remote_code=False, **file)
    else:
        config, sites = settings_of(source)
        _check_plain(config, what)
    notices = _without_its_code(config, name, what)
    if not gguf and _tokenizer_has_code(get_tokenizer_config(source)):
        raise UsageError(code_refused(what, "its tokenizer"))
    if not gguf and os.path.isdir(source) and not _has_vocabulary(Path(source)):
        raise UsageError(
            f"{what}: it has no tokenizer.json; copy the tokenizer's files of its base model into the folder, or pass "
            "the folder as it was published"
        )
    tokenizer = transformers.AutoTokenizer.from_pretrained(source, trust_remote_code=False, **file)
    return config, sites, tokenizer, notices


def resolve_dtype(dtype: str, device: torch.device) -> torch.dtype:
    """The type of weights; `auto` is float32 on a CPU, where bf16 is the slow one, else bfloat16."""
    return DTYPES[dtype] if dtype != "auto" else torch.float32 if device.type == "cpu" else torch.bfloat16


def resolve_device(device: str) -> torch.device:
    """`auto` or anything that `torch.device` accepts, checked to be there.

    Raises:
        UsageError: unknown or absent device.
    """
    if device == "auto":
        return torch.device(
            "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
        )
    try:
        resolved = torch.device(device)
        torch.empty(0, device=resolved)
        here, why = resolved.type != "meta", "it holds no numbers"
    except (RuntimeError, AssertionError, ImportError) as error:
        here, why = False, reason(error)
    if not here:
        raise UsageError(
            f"device {device!r} is not available here: {why}; pass --set device=cpu, or device=auto for the best that "
            "is there"
        )
    return resolved


def fingerprint(network: nn.Module) -> str:
    """Hash over the names, shapes, types and up to 64 evenly spaced values of every parameter, and of the offsets of a
    folder with a mind."""
    hasher = hashlib.sha256()
    minds = ((f"{name}.{OFFSET}", offset) for name, offset in offsets_in(network).items())
    for name, parameter in (*sorted(network.named_parameters()), *sorted(minds)):
        flat = parameter.detach().reshape(-1)
        sample = flat[:: max(1, flat.numel() // 64)][:64].to("cpu", torch.float64)
        hasher.update(json.dumps([name, list(parameter.shape), str(parameter.dtype)]).encode())
        hasher.update(sample.numpy().tobytes())
    return hasher.hexdigest()


def _context_length(config: Any) -> int:
    text = config.get_text_config()
    length = int(getattr(text, "max_position_embeddings", None) or getattr(text, "n_positions", None) or 2**31)
    rope = getattr(text, "rope_parameters", None) or {}
    if rope.get("rope_type") in ("dynamic", "longrope"):
        # Further on, frequencies change with the longest sequence of a forward: sequences would not be independent.
        length = min(length, int(rope.get("original_max_position_embeddings") or length))
    return length


def _eos_ids(network: Any, tokenizer: Any) -> frozenset[int]:
    declared = network.generation_config.eos_token_id if network.generation_config else None
    ids = declared if isinstance(declared, list) else [declared]
    return frozenset(int(i) for i in [*ids, tokenizer.eos_token_id] if i is not None)


def _check_plain(config: Any, what: str) -> None:
    """Refuse packed weights: gradients, adapters and minds go through plain ones.

    Raises:
        UsageError: the weights are quantised, in a way that is not undone at loading.
    """
    packed = getattr(config, "quantization_config", None) or getattr(
        config.get_text_config(), "quantization_config", None
    )
    if not packed:
        return
    settings = packed if isinstance(packed, dict) else packed.to_dict()
    method = settings.get("quant_method") or "bitsandbytes"
    if method not in UNPACKED:
        raise UsageError(
            f"{what}: its weights are quantised ({method}), and quantised weights are not trained here; pass the model "
            "in bfloat16 or float32, or as a GGUF file"
        )


def _without_its_code(config: Any, name: str, what: str) -> tuple[str, ...]:
    """A notice where a model brings code that it does not need, as transformers has the same architecture.

    Raises:
        UsageError: it is an architecture of its own.
    """
    if not getattr(config, "auto_map", None):
        return ()
    known = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(config.model_type)
    if known not in (config.architectures or ()):
        raise UsageError(code_refused(what))
    return (f"model {name!r} brings code of its own (auto_map), which is not run: transformers' {known} stands in",)


def _has_vocabulary(folder: Path) -> bool:
    found = (file.name for pattern in VOCABULARIES for file in folder.glob(pattern))
    return any(name != "tokenizer_config.json" for name in found)


def _tokenizer_has_code(settings: dict[str, Any]) -> bool:
    """Whether a tokenizer's settings name code, in the older form too, which is a list."""
    named = settings.get("auto_map")
    return bool(named.get("AutoTokenizer") if isinstance(named, dict) else named)


def _check_whole(network: Any, info: Mapping[str, Any], what: str) -> None:
    """Refuse what transformers has filled up with random numbers, changed by an adapter, or left packed.

    Args:
        info: what transformers says of loading.

    Raises:
        UsageError: weights are missing, of another shape or packed, or an adapter was loaded with them.
    """
    parameters = dict(network.named_parameters())
    if misfits := sorted(info["mismatched_keys"]):
        key, found, wanted = misfits[0]
        raise UsageError(
            f"{what}: {key} has the shape {list(found)}, but config.json makes it {list(wanted)}; pass the folder as "
            "it was published"
        )
    if absent := sorted(info["missing_keys"] & parameters.keys()):
        raise UsageError(f"{what}: it lacks {len(absent)} of its {len(parameters)} weights (first: {absent[0]})")
    if getattr(network, "_hf_peft_config_loaded", False):
        raise UsageError(
            f"{what}: it holds an adapter beside its weights, which training would replace; merge it into them (peft: "
            "merge_and_unload) and pass the merged model"
        )
    for key, parameter in parameters.items():
        if parameter.dtype not in (*DTYPES.values(), torch.float16):
            raise UsageError(
                f"{what}: its weights are quantised ({key} is {str(parameter.dtype).removeprefix('torch.')}), and "
                "quantised weights are not trained here; pass the model in bfloat16 or float32"
            )
