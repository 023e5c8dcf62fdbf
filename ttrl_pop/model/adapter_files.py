"""An adapter as the files that peft reads, the same bytes for the same weights."""

import json
from pathlib import Path
from typing import Any


def save_adapter(adapter: Any, folder: Path) -> None:
    """Write adapter_config.json and adapter_model.safetensors of peft's `adapter` to a folder, which is made."""
    # The vocabulary is never resized; left to itself, peft asks the hub whether it was.
    adapter.save_pretrained(folder, save_embedding_layers=False)
    # peft's model card is an empty form, with the model's local path in it.
    (folder / "README.md").unlink(missing_ok=True)
    _sort_targets(folder / "adapter_config.json")


def _sort_targets(config: Path) -> None:
    """Order the names of the layers with an adapter: peft writes a set of them, in another order in each process."""
    row = json.loads(config.read_text())
    # A pattern stays as it is.
    if isinstance(row["target_modules"], list):
        row["target_modules"].sort()
        config.write_text(json.dumps(row, indent=2, sort_keys=True))
