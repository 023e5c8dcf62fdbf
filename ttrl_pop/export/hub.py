"""An export on the hub.

Repeated after it was cut off, an upload goes on: what the hub has of the folder's parts is not sent again.
"""

import json
import os
from pathlib import Path
from typing import Any

import huggingface_hub
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError, RepositoryNotFoundError

from ttrl_pop.errors import TtrlPopError, UsageError
from ttrl_pop.model.source import EXPORT


def push(folder: Path, name: str, public: bool = False, api: Any = None) -> str:
    """Upload an exported folder as the model `name` and return its address. A new repository is private.

    Args:
        api: stands in for `huggingface_hub.HfApi()`.

    Raises:
        UsageError: the folder is no export, opens on this machine alone, or the repository is public and that was not
            asked for.
        TtrlPopError: the hub refuses, or cannot be reached.
    """
    check(folder)
    api = api or huggingface_hub.HfApi()
    try:
        try:
            if not public and not api.repo_info(name, repo_type="model").private:
                raise UsageError(f"{name} is there and is public; pass --public, or another name")
        except RepositoryNotFoundError:
            pass
        url = str(api.create_repo(name, repo_type="model", private=not public, exist_ok=True))
        api.upload_folder(repo_id=name, repo_type="model", folder_path=folder)
    except HFValidationError as error:
        raise UsageError(f"{name!r} is no name of a model on the hub: {error}; pass USER/NAME") from error
    except (HfHubHTTPError, LocalTokenNotFoundError, OSError) as error:
        raise TtrlPopError(
            f"the hub did not take {folder}: {str(error).splitlines()[0]}; log in by hf auth login, and repeat the "
            "command to go on"
        ) from error
    return url


def check(folder: Path) -> None:
    """Check that a folder is an export that others can open.

    Raises:
        UsageError: it is not.
    """
    if not (folder / EXPORT).is_file():
        raise UsageError(f"{folder}: no export of a run (no {EXPORT} in it); make one by ttrl-pop export")
    settings = folder / "adapter_config.json"
    if settings.is_file() and os.path.exists(base := json.loads(settings.read_text())["base_model_name_or_path"]):
        raise UsageError(
            f"{folder}: its base model is {base}, which is on this machine alone; export --to plain or --to code, or "
            "train from a hub id"
        )
