"""The models that are measured: the demo model, and a shape of 1.5 billion parameters with random weights.

python -m dev.gpu.models 1.5B FOLDER --model FILE.gguf --device cuda
"""

import argparse
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
import transformers

from ttrl_pop.model.gguf import converted, demo_gguf

SMALL, LARGE = "smollm2", "1.5B"
SHAPE = {
    "hidden_size": 1536,
    "intermediate_size": 8960,
    "num_hidden_layers": 28,
    "num_attention_heads": 12,
    "num_key_value_heads": 2,
    "vocab_size": 151936,
    "max_position_embeddings": 4096,
    "tie_word_embeddings": True,
}
"""Of Qwen2.5-1.5B."""
SMALL_SHAPE = {**SHAPE, "hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 2, "vocab_size": 49152}


def small(folder: Path, gguf: Path) -> None:
    """The demo model's folder, at a place of its own."""
    if not folder.exists():
        shutil.copytree(converted(gguf), folder)


def large(folder: Path, gguf: Path, device: str, quick: bool) -> None:
    """A folder of random weights in bf16, with the demo model's tokenizer. `quick`: two small layers."""
    torch.manual_seed(0)
    config = transformers.Qwen2Config(**(SMALL_SHAPE if quick else SHAPE), bos_token_id=1, eos_token_id=2)
    with torch.device(device):
        network = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    network.save_pretrained(folder)
    for file in converted(gguf).iterdir():
        if "token" in file.name or file.suffix == ".jinja":
            shutil.copy(file, folder)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m dev.gpu.models", description="Make a model's folder.")
    parser.add_argument("name", choices=(SMALL, LARGE))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--quick", action="store_true")
    given = parser.parse_args(arguments)
    gguf = demo_gguf() if given.model == "smollm2" else Path(given.model)
    if given.name == LARGE:
        large(given.folder, gguf, given.device, given.quick)
    else:
        small(given.folder, gguf)
    return 0


if __name__ == "__main__":
    sys.exit(main())
