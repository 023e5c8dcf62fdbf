"""Seconds of the same rollouts by `generate` of transformers on the CPU, as its users have it.

All rows in one call, temperature 1, no top-k or top-p, with a cache; float32, no adapter, no minds. A row ends at the
length planned for it and at no token of its own: `generate` computes every row until the longest has ended.

Prompts have one length, so no row is padded. Loading is not counted, nor is tokenizing. Run in a process of its own,
which prints one JSON line:

    python -m benchmarks.peer_generate MODEL_FOLDER --problems 16 --rollouts 16 --new-tokens 32 --steps 2
"""

import argparse
import sys
import time
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, StoppingCriteria, StoppingCriteriaList
from transformers.utils import logging as transformers_logging

from benchmarks.machine import tell
from benchmarks.workload import completion_lengths, times_table


class Planned(StoppingCriteria):  # type: ignore[misc]  # the project's mypy settings skip transformers
    """A row has ended once its completion has the length planned for it."""

    def __init__(self, prompt_tokens: int, lengths_B: Tensor) -> None:
        self.ends_B = prompt_tokens + lengths_B

    def __call__(self, input_ids: Tensor, scores: Tensor, **_: Any) -> Tensor:
        return input_ids.shape[1] >= self.ends_B


def time_calls(network: Any, prompts_BT: Tensor, lengths_B: Tensor, batch: int, steps: int) -> list[float]:
    """Seconds of each of `steps` repeats, with `batch` rows in a call.

    Raises:
        RuntimeError: not all was written.
    """
    network.generation_config.eos_token_id = None
    network.generation_config.pad_token_id = 0
    seconds = []
    for _ in range(steps):
        began = time.perf_counter()
        for rows_RT, lengths_R in zip(prompts_BT.split(batch), lengths_B.split(batch), strict=True):
            longest = int(lengths_R.max())
            written = network.generate(
                rows_RT,
                attention_mask=torch.ones_like(rows_RT),
                do_sample=True,
                temperature=1.0,
                top_k=0,
                top_p=1.0,
                use_cache=True,
                max_new_tokens=longest,
                stopping_criteria=StoppingCriteriaList([Planned(rows_RT.shape[1], lengths_R)]),
            )
            if written.shape[1] != rows_RT.shape[1] + longest:
                raise RuntimeError(f"generate wrote {written.shape[1] - rows_RT.shape[1]} of {longest} tokens")
        seconds.append(time.perf_counter() - began)
    return seconds


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peer_generate", description="Time generate.")
    parser.add_argument("model_folder", help="folder of a Hugging Face model")
    parser.add_argument("--problems", type=int, default=16)
    parser.add_argument("--rollouts", type=int, default=16, help="for each problem")
    parser.add_argument("--examples", type=int, default=1)
    parser.add_argument("--new-tokens", type=int, default=32)
    parser.add_argument("--lengths", default="even", choices=("even", "mixed"))
    parser.add_argument("--batch", type=int, help="rows of one call; default: all")
    parser.add_argument("--steps", type=int, default=2)
    given = parser.parse_args(arguments)
    warnings.filterwarnings("ignore")
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    tokenizer = AutoTokenizer.from_pretrained(given.model_folder)
    network = AutoModelForCausalLM.from_pretrained(given.model_folder, dtype=torch.float32).eval()
    prompts = [tokenizer(text)["input_ids"] for text in times_table(given.problems, given.examples)]
    rows_BT = torch.tensor(prompts).repeat_interleave(given.rollouts, dim=0)
    lengths_B = torch.tensor(completion_lengths(given.lengths, len(rows_BT), given.new_tokens))
    return tell(seconds=time_calls(network, rows_BT, lengths_B, given.batch or len(rows_BT), given.steps))


if __name__ == "__main__":
    sys.exit(main())
