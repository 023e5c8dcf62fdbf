"""TRL: GRPO with a population of minds, which write the rollouts and through which the loss reads them again.

    from ttrl_pop.integrations.trl import majority
    from ttrl_pop.integrations.trl_minds import MindsGRPOTrainer

    MindsGRPOTrainer(model="Qwen/Qwen2.5-1.5B-Instruct", population={"sigma": 0.005}, reward_funcs=majority,
                     args=GRPOConfig(num_generations=16), train_dataset=problems, peft_config=LoraConfig()).train()

Every group has `num_generations / samples_per_mind` minds, new ones in every generation batch and the same in all of
its groups. Their seeds travel with the rows, so that whatever TRL shuffles, splits or reads twice is read by who wrote
it.

Simplifications:

1. No KL to a reference (`beta`), and rollouts by plain `generate` alone: what else writes for TRL (vLLM, continuous
   batching, tools, `rollout_func`) knows of no rows, or writes some of them again.
2. mu and log sigma are no part of the model: their gradients are averaged over processes here, clipped apart at the
   same norm, and saved beside the model.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from trl import GRPOTrainer

from ttrl_pop.api.population import Minds, population
from ttrl_pop.errors import UsageError
from ttrl_pop.types import Mind

FASTER = 5.0
"""Learning rate of mu and log sigma, in that of the model."""

SEEDS = "mind_seeds"
"""Key under which the seeds of the rows travel with them."""


class MindsGRPOTrainer(GRPOTrainer):  # type: ignore[misc]
    """TRL's GRPO trainer, with a mind for every rollout."""

    def __init__(
        self,
        *arguments: Any,
        population: dict[str, Any] | None = None,
        samples_per_mind: int = 1,
        population_lr: float | None = None,
        **more: Any,
    ) -> None:
        """
        Args:
            population: options of `ttrl_pop.population`; the default is `{"sigma": 0.005}`.
            samples_per_mind: rollouts of a group that one mind writes.
            population_lr: learning rate of mu and log sigma; None is `FASTER` times that of the model.
            arguments, more: those of `trl.GRPOTrainer`.

        Raises:
            UsageError: settings that do not go with minds.
        """
        super().__init__(*arguments, **more)
        _check(self, samples_per_mind)
        self.minds: Minds = _population(self.model, population)
        self.samples_per_mind = samples_per_mind
        self.population_lr = FASTER * self.args.learning_rate if population_lr is None else population_lr
        self._stay: ExitStack | None = None
        self.add_callback(_Apart(self.minds, self.args.max_grad_norm))

    def rows(self, count: int) -> list[Mind]:
        """The minds of the `count` rows of this process that are generated next."""
        size = self.num_generations if self.model.training else self.num_generations_eval
        args = self.args
        step = self.state.global_step * args.gradient_accumulation_steps + self._step % args.gradient_accumulation_steps
        spawned = self.minds.spawn(args.seed, step + 1, -(-size // self.samples_per_mind))
        first = self.accelerator.process_index * count
        return [spawned[(first + row) % size // self.samples_per_mind] for row in range(count)]

    def create_optimizer(self, *arguments: Any, **more: Any) -> Any:
        fresh = self.optimizer is None
        optimizer = super().create_optimizer(*arguments, **more)
        if fresh and (parameters := self.minds.parameters()):
            optimizer.add_param_group({"params": parameters, "lr": self.population_lr, "weight_decay": 0.0})
        return optimizer

    def training_step(self, *arguments: Any, **more: Any) -> Any:
        # Until the backward pass is over: where layers are computed again, it asks for the minds once more.
        with ExitStack() as self._stay:
            loss = super().training_step(*arguments, **more)
        self._stay = None
        if self.accelerator.num_processes > 1:
            for parameter in self.minds.parameters():
                if parameter.grad is not None:
                    parameter.grad = self.accelerator.reduce(parameter.grad, reduction="mean")
        for name, value in self.minds.population.metrics().items():
            self._metrics["train"][name].append(value)
        return loss

    def _generate_and_score_completions(self, inputs: Sequence[Any]) -> dict[str, Any]:
        minds = self.rows(len(inputs))
        with self.minds.embody(minds):
            out: dict[str, Any] = super()._generate_and_score_completions(inputs)
        out[SEEDS] = torch.tensor([mind.seed for mind in minds], device=self.accelerator.device)
        return out

    def _compute_loss(self, model: nn.Module, inputs: dict[str, Any]) -> Tensor:
        embodied = self.minds.embody([Mind(seed) for seed in inputs[SEEDS].tolist()])
        with ExitStack() as own:
            (self._stay or own).enter_context(embodied)
            loss: Tensor = super()._compute_loss(model, inputs)
        return loss

    def _save(self, output_dir: str | None = None, *arguments: Any, **more: Any) -> None:
        super()._save(output_dir, *arguments, **more)
        self.minds.save_pretrained(output_dir or self.args.output_dir)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, *arguments: Any, **more: Any) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, *arguments, **more)
        self.minds.load(Path(resume_from_checkpoint))

    def _load_best_model(self) -> None:
        super()._load_best_model()
        self.minds.load(Path(self.state.best_model_checkpoint))


class _Apart(transformers.TrainerCallback):  # type: ignore[misc]
    """What the trainer does to the gradients of the model, done to those of the minds."""

    def __init__(self, minds: Minds, max_norm: float | None) -> None:
        self.minds = minds
        self.max_norm = max_norm

    def on_pre_optimizer_step(self, *arguments: Any, **more: Any) -> None:
        if self.max_norm:
            nn.utils.clip_grad_norm_(self.minds.parameters(), self.max_norm)

    def on_optimizer_step(self, *arguments: Any, **more: Any) -> None:
        for parameter in self.minds.parameters():
            parameter.grad = None


def _population(model: Any, options: dict[str, Any] | None) -> Minds:
    return population(model, **(options or {"sigma": 0.005}))


def _check(trainer: Any, samples_per_mind: int) -> None:
    """Refuse settings that do not go with minds.

    Raises:
        UsageError: which, and what to do.
    """
    args = trainer.args
    if args.beta:
        raise UsageError(f"beta must be 0 with minds, got {args.beta}: the reference would be read through noise")
    for name in ("use_vllm", "use_transformers_continuous_batching"):
        if getattr(args, name, False):
            raise UsageError(f"{name} must be false with minds: that engine writes all rows under one setting")
    for name, given in (
        ("environment_factory", any((getattr(trainer, "environment_factories", None) or {}).values())),
        ("tools", getattr(trainer, "tools", None)),
        ("rollout_func", getattr(trainer, "rollout_func", None)),
    ):
        if given:
            raise UsageError(
                f"{name} must be left out with minds: it writes rows, or parts of them, that no mind is known of"
            )
    if samples_per_mind < 1 or args.num_generations % samples_per_mind:
        raise UsageError(
            f"samples_per_mind must divide num_generations, got {samples_per_mind} and {args.num_generations}"
        )
