"""Seconds of one GRPO step of TRL's GRPOTrainer, for a comparison at equal work.

One step is all that TRL does between two optimizer updates: tokenize, sample problems × generations completions with
`transformers.generate`, reward, advantages, forward and backward over all of them, clip, one AdamW update. Float32,
LoRA on every linear layer, no reference model, temperature 1, one update per batch, so TRL takes the detached new
log-probs for the old ones and makes no extra forward. On a GPU it runs as its users have it there: weights in bf16
where that is asked for, and nothing compiled.

Simplifications:
1. The reward alternates 0, 1 within a group: no group is constant, so none is idle; nothing is learned from it.
2. Every step has the same prompts.

Loading the model and building the trainer are not counted. Run in a process of its own, which prints one JSON line:

    python -m benchmarks.peer_trl MODEL_FOLDER --problems 16 --generations 16 --new-tokens 4 --steps 2
"""

import argparse
import logging
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer, PrinterCallback, TrainerCallback
from transformers.utils import logging as transformers_logging

from benchmarks.machine import now, tell
from benchmarks.workload import QUESTIONS, times_table

MICRO_BATCH = 64
"""Rows of one forward and backward, at most. On 128 rows a step took 31, 28 and 29 s in parts of 128, 64 and 32, on a
machine that was not idle, so by no clear margin. Generation takes all rows at once whatever this is."""


class StepClock(TrainerCallback):  # type: ignore[misc]  # the project's mypy settings skip transformers
    """Wall-clock seconds of each optimizer step, from before its generation to after its update."""

    def __init__(self, each: Callable[[float], None]) -> None:
        self.seconds: list[float] = []
        self._began = 0.0
        self._each = each

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self._began = now()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.seconds.append(now() - self._began)
        self._each(self.seconds[-1])


def time_steps(
    model_folder: Path,
    prompts: Sequence[str],
    generations: int,
    max_new_tokens: int,
    steps: int,
    lora_rank: int,
    lr: float,
    device: str = "cpu",
    dtype: str = "float32",
    micro_batch: int = MICRO_BATCH,
    even: bool = False,
    each: Callable[[float], None] = lambda seconds: None,
) -> list[float]:
    """Train for `steps` GRPO steps with TRL; the seconds of each.

    A step samples len(prompts) × generations (at least 2) completions of at most `max_new_tokens` tokens and makes
    one update from all of them.

    Args:
        micro_batch: rows of one forward and backward, at most.
        even: whether every completion has `max_new_tokens` tokens.
        each: is told the seconds of a step when it is done.
    """
    _quiet()
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    rows = len(prompts) * generations
    micro_batch = max(size for size in range(1, min(rows, micro_batch) + 1) if rows % size == 0)
    kind = getattr(torch, dtype)
    clock = StepClock(each)
    with TemporaryDirectory() as folder:
        config = GRPOConfig(
            output_dir=folder,
            use_cpu=torch.device(device).type == "cpu",
            bf16=kind == torch.bfloat16,
            gradient_checkpointing=False,
            per_device_train_batch_size=micro_batch,
            gradient_accumulation_steps=rows // micro_batch,
            num_generations=generations,
            max_completion_length=max_new_tokens,
            generation_kwargs={"min_new_tokens": max_new_tokens} if even else None,
            max_steps=steps,
            learning_rate=lr,
            lr_scheduler_type="constant",
            temperature=1.0,
            beta=0.0,
            num_iterations=1,
            loss_type="dapo",
            save_strategy="no",
            logging_strategy="no",
            report_to="none",
            disable_tqdm=True,
            dataloader_pin_memory=False,
        )
        trainer = GRPOTrainer(
            model=AutoModelForCausalLM.from_pretrained(model_folder, dtype=kind),
            processing_class=AutoTokenizer.from_pretrained(model_folder, padding_side="left"),
            reward_funcs=_alternating,
            args=config,
            train_dataset=Dataset.from_dict({"prompt": list(prompts)}),
            peft_config=LoraConfig(r=lora_rank, lora_alpha=2 * lora_rank, target_modules="all-linear"),
            callbacks=[clock],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    return clock.seconds


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peer_trl", description="Time TRL's GRPO step.")
    parser.add_argument("model_folder", type=Path, help="folder of a Hugging Face model")
    parser.add_argument("--problems", type=int, default=16, help=f"1 to {QUESTIONS}")
    parser.add_argument("--generations", type=int, default=16)
    parser.add_argument("--new-tokens", type=int, default=4)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--lora-rank", type=int, default=8)
    parser.add_argument("--lr", type=float, default=2e-4)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--micro-batch", type=int, default=MICRO_BATCH)
    parser.add_argument("--even", action="store_true", help="no completion ends before --new-tokens")
    given = parser.parse_args(arguments)
    if not 1 <= given.problems <= QUESTIONS:
        parser.error(f"--problems is 1 to {QUESTIONS}, got {given.problems}")
    seconds = time_steps(
        given.model_folder,
        times_table(given.problems),
        given.generations,
        given.new_tokens,
        given.steps,
        given.lora_rank,
        given.lr,
        given.device,
        given.dtype,
        given.micro_batch,
        given.even,
    )
    packages = ("trl", "transformers", "peft", "torch")
    return tell(seconds=seconds, versions={name: version(name) for name in packages})


def _alternating(completions: Sequence[str], **_: Any) -> list[float]:
    return [float(index % 2) for index in range(len(completions))]


def _quiet() -> None:
    """stdout and stderr are the caller's: no warnings, no progress bars."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    transformers_logging.disable_progress_bar()


if __name__ == "__main__":
    sys.exit(main())
