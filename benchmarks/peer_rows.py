"""Seconds of one update by a plain learner on the CPU: each rollout a row with its prompt, nothing shared.

The model's own forward in transformers with PEFT's own LoRA on all linear layers; rows in micro-batches, logits at all
positions of the completions, cross entropy weighted by the advantage, `backward`, clip, AdamW. On-policy with one
update the gradient of the clipped ratio is that of the log-probability, so this is the gradient of ours. With minds a
hook on every norm over the hidden size adds mu + sigma · eps, both of which are trained.

Simplifications:
1. Prompts have one length, and so have completions: no row is padded.
2. Completions are random tokens; rewards alternate 0, 1 within a group.

Loading the model is not counted. Run in a process of its own, which prints one JSON line:

    python -m benchmarks.peer_rows MODEL_FOLDER --problems 16 --rollouts 16 --minds 16 --new-tokens 4 --steps 2
"""

import argparse
import math
import sys
import time
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging as transformers_logging

from benchmarks.machine import tell
from benchmarks.workload import times_table

SIGMA = 0.005
MAX_GRAD_NORM = 1.0


class Noise(nn.Module):
    """An offset for each row behind every norm over the hidden size."""

    def __init__(self, network: Any, minds: int) -> None:
        super().__init__()
        width = network.config.get_text_config().hidden_size
        sites = [
            module
            for module in network.modules()
            if "norm" in type(module).__name__.lower() and tuple(module.weight.shape) == (width,)
        ]
        self.mu = nn.Parameter(torch.zeros(len(sites), 1, width))
        self.log_sigma = nn.Parameter(torch.full((len(sites), 1, 1), math.log(SIGMA)))
        self.eps_SMD = torch.randn(len(sites), minds, width)
        self.offsets: tuple[Tensor, ...] = ()
        for site, module in enumerate(sites):
            module.register_forward_hook(lambda _, __, output, site=site: output + self.offsets[site][:, None])

    def enter(self, minds_B: Tensor) -> None:
        """From now on row b is read by mind `minds_B[b]`."""
        offsets_SMD = self.mu + self.log_sigma.exp() * self.eps_SMD
        self.offsets = offsets_SMD[:, minds_B].unbind(0)


class PlainLearner:
    def __init__(self, model_folder: str, minds: int, lora_rank: int, lr: float, compiled: bool) -> None:
        """`minds`: 0 is no population."""
        network = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32).requires_grad_(False)
        self.noise = Noise(network, minds) if minds else None
        settings = LoraConfig(r=lora_rank, lora_alpha=2 * lora_rank, target_modules="all-linear", task_type="CAUSAL_LM")
        adapted = get_peft_model(network, settings)
        parameters = [p for p in adapted.parameters() if p.requires_grad]
        self.forward: Any = torch.compile(adapted, dynamic=False) if compiled else adapted
        self.clipped = [parameters, list(self.noise.parameters()) if self.noise else []]
        self.optimizer = torch.optim.AdamW([*self.clipped[0], *self.clipped[1]], lr=lr)

    def update(self, prompts_BP: Tensor, completions_BT: Tensor, minds_B: Tensor, weights_B: Tensor, rows: int) -> None:
        """One optimizer step on all rollouts, `rows` of them at a time."""
        self.optimizer.zero_grad(set_to_none=True)
        batches = (part.split(rows) for part in (prompts_BP, completions_BT, minds_B, weights_B))
        for prompts, completions, minds, weights in zip(*batches, strict=True):
            if self.noise is not None:
                self.noise.enter(minds)
            ids = torch.cat([prompts, completions[:, :-1]], dim=1)
            logits = self.forward(input_ids=ids, use_cache=False, logits_to_keep=completions.shape[1]).logits
            losses = nn.functional.cross_entropy(logits.flatten(0, 1), completions.flatten(), reduction="none")
            loss = (losses.view_as(completions) * weights[:, None]).sum() / completions_BT.numel()
            torch.autograd.backward(loss)
        for parameters in self.clipped:
            nn.utils.clip_grad_norm_(parameters, MAX_GRAD_NORM)
        self.optimizer.step()


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peer_rows", description="Time a plain learner.")
    parser.add_argument("model_folder", help="folder of a Hugging Face model")
    parser.add_argument("--problems", type=int, default=16)
    parser.add_argument("--rollouts", type=int, default=16, help="for each problem")
    parser.add_argument("--minds", type=int, default=0, help="a divisor of the rollouts; 0: no population")
    parser.add_argument("--examples", type=int, default=0)
    parser.add_argument("--new-tokens", type=int, default=4)
    parser.add_argument("--micro-tokens", type=int, default=2048, help="of one forward, at most, if above a row's")
    parser.add_argument("--compiled", action="store_true", help="torch.compile the model")
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--lora-rank", type=int, default=8)
    parser.add_argument("--lr", type=float, default=2e-4)
    given = parser.parse_args(arguments)
    warnings.filterwarnings("ignore")
    transformers_logging.disable_progress_bar()
    tokenizer = AutoTokenizer.from_pretrained(given.model_folder)
    prompts = [tokenizer(text)["input_ids"] for text in times_table(given.problems, given.examples)]
    prompts_BP = torch.tensor(prompts).repeat_interleave(given.rollouts, dim=0)
    rows = len(prompts_BP)
    member_B = torch.arange(rows) % given.rollouts
    minds_B = member_B * given.minds // given.rollouts
    # Rewards 0, 1, 0, … less their mean: the spread is the same for all, and a constant.
    weights_B = (member_B % 2).float() - 0.5
    learner = PlainLearner(given.model_folder, given.minds, given.lora_rank, given.lr, given.compiled)
    vocabulary = len(tokenizer)
    micro = max(1, given.micro_tokens // (prompts_BP.shape[1] + given.new_tokens - 1))
    seconds = []
    for _ in range(given.steps):
        completions_BT = torch.randint(vocabulary, (rows, given.new_tokens))
        began = time.perf_counter()
        learner.update(prompts_BP, completions_BT, minds_B, weights_B, min(micro, rows))
        seconds.append(time.perf_counter() - began)
    return tell(seconds=seconds)


if __name__ == "__main__":
    sys.exit(main())
