"""learn: tallies → one or more optimizer steps on mu, log sigma and the adapter → update.

GRPO on the formulas of `ttrl_pop.learn.grpo`. What is particular here:
1. `replay`: log-probabilities are computed through the very mind that wrote each rollout, so they equal the sampler's
   and mu and sigma get the reparameterised gradient. `mean` and `mean-tis` switch the noise off.
2. The old log-probabilities are those of the first pass, detached: on-policy with one update, and no extra forward.
3. Groups without a signal are skipped. They stay in the normaliser, so skipping saves time and changes no gradient;
   with a KL to the base model, to which every rollout contributes, nothing is skipped.
4. Dropout is off and the model in eval mode: the learner sees the distribution that was sampled.
5. Rollouts of one mind stand in one tree, where what they begin with is read once (`ttrl_pop.packing.pack`); a
   micro-batch for which memory does not suffice is halved. Neither changes the gradient.
"""

import math
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, fields, replace
from itertools import chain

import torch
from torch import Tensor, nn

from ttrl_pop.config import Config
from ttrl_pop.errors import DivergenceError, SamplerMismatchError, StaleRolloutError
from ttrl_pop.kernels.memory import is_exhausted
from ttrl_pop.learn import grpo
from ttrl_pop.model.policy import Policy
from ttrl_pop.packing.pack import Load
from ttrl_pop.population.base import MEAN
from ttrl_pop.types import Mind, Rollout, Tally, Update


@dataclass(slots=True)
class Sample:
    """A rollout that the loss counts, with its share in the step."""

    rollout: Rollout
    advantage: float
    weight: float
    """Of each of its tokens, in the normaliser of the whole step."""
    old: Tensor | None = None
    """Log-probabilities [T] of the first pass, detached."""
    base: Tensor | None = None
    """Those of the base model [T], which no update changes; None until they are asked for."""


@dataclass(slots=True)
class Sums:
    """Running totals over the micro-batches of a step."""

    loss: float = 0.0
    kl: float = 0.0
    tokens: int = 0
    clipped: int = 0
    gap: float = 0.0
    gap_tokens: int = 0
    """Tokens of the first pass, the one that is compared with the sampler."""
    gap_max: float = 0.0
    norms: list[float] = field(default_factory=list)
    population_norms: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)

    def add(self, batch: "Sums") -> None:
        """Those of one micro-batch."""
        self.loss += batch.loss
        self.kl += batch.kl
        self.tokens += batch.tokens
        self.clipped += batch.clipped
        self.gap += batch.gap
        self.gap_tokens += batch.gap_tokens
        self.gap_max = max(self.gap_max, batch.gap_max)


@dataclass(frozen=True, slots=True)
class LearnerState:
    """A copy of all that updates change."""

    parameters: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    policy_version: int
    bad_in_a_row: int


class Learner:
    """Owns the optimizer. `learn` is the only place where the policy's weights change."""

    def __init__(self, policy: Policy, config: Config) -> None:
        self.policy = policy
        self.config = config
        self.bad_in_a_row = 0
        self.token_budget = config.learn.token_budget
        """Tokens of a micro-batch; halved where one did not fit into the memory."""
        if config.learn.checkpointing:
            policy.recompute_layers()
        self.adapter = policy.adapter_parameters()
        self.population = policy.population_parameters()
        options = config.learn
        population_lr = options.population_lr if options.population_lr is not None else 5 * options.lr
        groups = [
            {
                "params": list(self.adapter.values()),
                "lr": options.lr,
                "weight_decay": options.weight_decay,
            },
            {"params": list(self.population.values()), "lr": population_lr, "weight_decay": 0.0},
        ]
        named = {**self.adapter, **self.population} if config.vote.labels == "average" else {}
        self.average = {name: parameter.detach().clone() for name, parameter in named.items()}
        """Exponential average of the trained parameters, which labels problems where the configuration says so."""
        self.base_lrs = [options.lr, population_lr]
        self.optimizer = torch.optim.AdamW(
            [group for group in groups if group["params"]], fused=policy.device.type == "cuda"
        )

    def learn(self, tallies: Sequence[Tally], step: int, weights: Mapping[str, float] | None = None) -> Update:
        """Update the policy from the tallies of a step, in the order of the problems.

        Args:
            weights: factor on the advantages of each problem, by id; a group with 0 has no signal. None: 1 for all.

        Raises:
            StaleRolloutError: a rollout was written by another version of the policy.
            DivergenceError: `max_bad_updates` updates in a row had a loss or gradient that was not finite.
            SamplerMismatchError: the sampler's log-probabilities are further from the learner's than is allowed.
        """
        options = self.config.learn
        self._check_versions(tallies)
        ordered = sorted(tallies, key=lambda tally: tally.group.problem.index)
        samples, used, skipped = self._samples(ordered, weights or {})
        lrs = self._set_learning_rates(step)
        sums, updates, bad = Sums(), 0, 0
        for _ in range(options.updates_per_step if samples else 0):
            if self._update(samples, sums):
                updates, self.bad_in_a_row = updates + 1, 0
                self.policy.version += 1
            else:
                bad, self.bad_in_a_row = bad + 1, self.bad_in_a_row + 1
                if self.bad_in_a_row >= options.max_bad_updates:
                    raise DivergenceError(
                        f"step {step}: loss or gradient was not finite in {self.bad_in_a_row} updates in a row; "
                        "lower learn.lr or population.options.sigma"
                    )
        self._check_gap(sums, step)
        self._extend_average()
        tokens = max(sums.tokens, 1)
        return Update(
            policy_version=self.policy.version,
            loss=_mean(sums.losses),
            grad_norm=_mean(sums.norms),
            population_grad_norm=_mean(sums.population_norms) if self.population else None,
            kl=sums.kl / tokens if options.kl and updates else None,
            clip_share=sums.clipped / tokens if updates else None,
            logprob_gap=sums.gap / sums.gap_tokens if sums.gap_tokens else None,
            logprob_gap_max=sums.gap_max if sums.gap_tokens else None,
            tokens=sums.tokens,
            groups_used=used,
            groups_skipped=skipped,
            updates=updates,
            bad_updates=bad,
            token_budget=self.token_budget,
            lr=lrs[0],
            population_lr=lrs[1],
        )

    def state_tensors(self) -> dict[str, Tensor]:
        """The optimizer's state by parameter name, and the policy's average where there is one, for a checkpoint."""
        named = {**self.adapter, **self.population}
        state = {
            f"{name}::{key}": value
            for name, parameter in named.items()
            for key, value in self.optimizer.state[parameter].items()
        }
        return state | {f"{name}::average": value for name, value in self.average.items()}

    def load_state_tensors(self, tensors: dict[str, Tensor]) -> None:
        """Take over what `state_tensors` gave."""
        named = {**self.adapter, **self.population}
        for full, value in tensors.items():
            name, _, key = full.rpartition("::")
            parameter = named[name]
            if key == "average":
                self.average[name] = value.to(parameter.device)
                continue
            # Adam counts its steps in a CPU tensor unless it is fused.
            on_device = key != "step" or self.optimizer.defaults["fused"]
            self.optimizer.state[parameter][key] = value.to(parameter.device, copy=True) if on_device else value.clone()

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """While active, the policy's weights are their exponential average over the steps so far."""
        named = {**self.adapter, **self.population}
        own = {name: parameter.detach().clone() for name, parameter in named.items()}
        try:
            self._put(self.average)
            yield
        finally:
            self._put(own)

    def snapshot(self) -> LearnerState:
        """A copy of the trained parameters and the optimizer, to go back to with `restore`."""
        named = {**self.adapter, **self.population}
        return LearnerState(
            parameters={name: parameter.detach().clone() for name, parameter in named.items()},
            optimizer={name: value.clone() for name, value in self.state_tensors().items()},
            policy_version=self.policy.version,
            bad_in_a_row=self.bad_in_a_row,
        )

    def restore(self, state: LearnerState) -> None:
        """Undo all updates since `snapshot`."""
        self._put(state.parameters)
        self.optimizer.state.clear()
        self.load_state_tensors(state.optimizer)
        self.policy.version, self.bad_in_a_row = state.policy_version, state.bad_in_a_row

    def _put(self, values: Mapping[str, Tensor]) -> None:
        with torch.no_grad():
            for name, parameter in {**self.adapter, **self.population}.items():
                parameter.copy_(values[name])

    def _extend_average(self) -> None:
        decay = self.config.vote.average_decay
        for name, parameter in {**self.adapter, **self.population}.items():
            if name in self.average:
                self.average[name].lerp_(parameter.detach(), 1 - decay)

    def _check_versions(self, tallies: Sequence[Tally]) -> None:
        for tally in tallies:
            for rollout in tally.group.rollouts_G:
                if rollout.policy_version != self.policy.version:
                    raise StaleRolloutError(
                        f"problem {tally.group.problem.id!r}: rollout of policy version {rollout.policy_version}, but "
                        f"the learner is at version {self.policy.version}; the backend missed a refresh"
                    )

    def _check_gap(self, sums: Sums, step: int) -> None:
        """Under `replay` both sides compute the same thing; a gap beyond rounding means that they did not."""
        limit = self.config.learn.max_logprob_gap
        if limit is None or self.config.learn.noise != "replay" or not sums.gap_tokens:
            return
        gap = sums.gap / sums.gap_tokens
        if not gap <= limit:
            raise SamplerMismatchError(
                f"step {step}: log-probabilities of sampler and learner differ by {gap:.2g} nats per token, more than "
                f"learn.max_logprob_gap {limit:.2g}; the engine wrote with other minds or weights than the learner's. "
                "Go on with --backend hf, or raise the limit if rounding explains it"
            )

    def _samples(self, tallies: Sequence[Tally], weights: Mapping[str, float]) -> tuple[list[Sample], int, int]:
        """The rollouts that carry a gradient, with advantage and token weight; groups used and skipped."""
        options = self.config.learn
        entries: list[tuple[Rollout, float, bool]] = []
        used = 0
        for tally in tallies:
            rewards_G = torch.tensor(tally.rewards_G, dtype=torch.float64)
            weight = weights.get(tally.group.problem.id, 1.0)
            signal = tally.label is not None and weight > 0 and grpo.has_signal(rewards_G)
            keep = signal or options.kl > 0
            advantages_G = grpo.advantages(rewards_G, options.loss) * weight
            advantages = advantages_G.tolist() if signal else [0.0] * len(rewards_G)
            counted = [
                (rollout, advantage, keep)
                for rollout, advantage in zip(tally.group.rollouts_G, advantages, strict=True)
                if not (options.mask_truncated and rollout.finish_reason == "length")
            ]
            used += keep and bool(counted)
            entries += counted
        skipped = len(tallies) - used
        if not entries:
            return [], used, skipped
        lengths = torch.tensor([len(rollout.completion_ids) for rollout, _, _ in entries])
        token_weights = grpo.token_weights(lengths, options.loss, self.config.sampling.max_new_tokens).tolist()
        samples = [
            Sample(rollout, advantage, weight)
            for (rollout, advantage, keep), weight in zip(entries, token_weights, strict=True)
            if keep and rollout.completion_ids
        ]
        return samples, used, skipped

    def _update(self, samples: Sequence[Sample], sums: Sums) -> bool:
        """One optimizer step on all samples; False where it was skipped for a value that is not finite."""
        before, is_first = replace(sums), samples[0].old is None
        self.optimizer.zero_grad(set_to_none=True)
        waiting = deque(micro_batches(samples, self._reader, self.token_budget))
        while waiting:
            try:
                self._backward(waiting[0], sums)
            except (RuntimeError, MemoryError) as error:
                if len(waiting[0]) == 1 or not is_exhausted(error):
                    raise
                self.token_budget = max(1, self.token_budget // 2)
                waiting = deque(micro_batches([*chain(*waiting)], self._reader, self.token_budget))
            else:
                waiting.popleft()
        if self.config.learn.kl_prior and self.population:
            prior = self.config.learn.kl_prior * self.policy.population.kl_to_prior()
            # A population without spread has no KL to lower.
            if prior.requires_grad:
                torch.autograd.backward(prior)
            sums.loss += float(prior.detach())
        loss = sums.loss - before.loss
        limit = self.config.learn.max_grad_norm
        norm = float(nn.utils.clip_grad_norm_(self.adapter.values(), limit))
        population_norm = float(nn.utils.clip_grad_norm_(self.population.values(), limit))
        if not (math.isfinite(loss) and math.isfinite(norm) and math.isfinite(population_norm)):
            self.optimizer.zero_grad(set_to_none=True)
            # What is not finite must not reach the metrics; the lists have not grown yet.
            for item in fields(Sums):
                setattr(sums, item.name, getattr(before, item.name))
            # A first pass that failed leaves nothing to measure later passes by.
            for sample in samples if is_first else ():
                sample.old = None
            return False
        self.optimizer.step()
        # The fused optimizer does not raise versions, by which offsets and merged weights are known to be stale.
        torch.autograd.graph.increment_version([*self.adapter.values(), *self.population.values()])
        sums.losses.append(loss)
        sums.norms.append(norm)
        sums.population_norms.append(population_norm)
        return True

    def _mind(self, sample: Sample) -> Mind:
        """Through which a rollout is read."""
        return sample.rollout.mind if self.config.learn.noise == "replay" else MEAN

    def _reader(self, sample: Sample) -> Mind:
        return self.policy.population.reader(self._mind(sample))

    def _backward(self, batch: Sequence[Sample], sums: Sums) -> None:
        """Add the gradient of one micro-batch; all of it or, where that fails, nothing."""
        if self.config.learn.kl:
            self._read_by_base([sample for sample in batch if sample.base is None])
        with ExitStack() as stay:
            self._backward_through_minds(batch, sums, stay)

    @torch.no_grad()
    def _read_by_base(self, batch: Sequence[Sample]) -> None:
        if not batch:
            return
        with self.policy.as_base():
            base_BT, mask_BT = self.policy.token_logprobs(
                [sample.rollout for sample in batch], None, self.config.sampling.temperature
            )
        for sample, base_T, kept_T in zip(batch, base_BT, mask_BT, strict=True):
            sample.base = base_T[kept_T]

    def _backward_through_minds(self, batch: Sequence[Sample], sums: Sums, stay: ExitStack) -> None:
        options, temperature = self.config.learn, self.config.sampling.temperature
        policy = self.policy
        rollouts = [sample.rollout for sample in batch]
        minds = [self._mind(sample) for sample in batch]
        new_BT, mask_BT = policy.token_logprobs(rollouts, minds, temperature, stay)
        first = batch[0].old is None
        olds = [new[kept] for new, kept in zip(new_BT.detach(), mask_BT, strict=True)]
        if not first:
            olds = [sample.old for sample in batch if sample.old is not None]
        old_BT = pad(olds, new_BT)
        sampler_BT = pad([torch.tensor(r.logprobs, dtype=new_BT.dtype) for r in rollouts], new_BT)
        weights_B = new_BT.new_tensor([sample.weight for sample in batch])
        advantages_B = new_BT.new_tensor([sample.advantage for sample in batch])

        ratios_BT = grpo.log_ratios(new_BT, old_BT, mask_BT, options.loss)
        loss_BT, clipped_BT = grpo.policy_loss(ratios_BT, advantages_B, options.clip_low, options.clip_high)
        if options.noise == "mean-tis" or (options.tis and options.noise == "replay"):
            loss_BT = loss_BT * grpo.truncated_importance(old_BT, sampler_BT, options.tis_cap)
        kl_BT = None
        if options.kl:
            kl_BT = grpo.k3(new_BT, pad([sample.base for sample in batch if sample.base is not None], new_BT))
            loss_BT = loss_BT + options.kl * kl_BT
        loss = (loss_BT * weights_B[:, None]).masked_fill(~mask_BT, 0.0).sum()
        parameters = [*self.adapter.values(), *self.population.values()]
        gradients = torch.autograd.grad(loss, parameters, allow_unused=True)

        # All that can fail comes before the first change.
        found = Sums(
            loss=float(loss.detach()),
            kl=0.0 if kl_BT is None else float(kl_BT.detach()[mask_BT].sum()),
            tokens=int(mask_BT.sum()),
            clipped=int((clipped_BT & mask_BT).sum()),
        )
        if first:
            gaps = (old_BT - sampler_BT).abs()[mask_BT]
            found.gap, found.gap_tokens, found.gap_max = float(gaps.sum()), gaps.numel(), float(gaps.max())
        for parameter, gradient in zip(parameters, gradients, strict=True):
            if gradient is not None:
                parameter.grad = gradient if parameter.grad is None else parameter.grad.add_(gradient)
        for sample, old in zip(batch, olds, strict=True):
            sample.old = old
        sums.add(found)

    def _set_learning_rates(self, step: int) -> tuple[float, float]:
        factor = schedule_factor(step, self.config.steps, self.config.learn.warmup_steps, self.config.learn.schedule)
        adapter_lr, population_lr = (lr * factor for lr in self.base_lrs)
        rates = [rate for rate, own in ((adapter_lr, self.adapter), (population_lr, self.population)) if own]
        for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
        return adapter_lr, population_lr


def schedule_factor(step: int, steps: int, warmup: int, schedule: str) -> float:
    """Factor on the learning rates in step 1..steps: a linear rise over `warmup` steps, then constant, or a linear or
    cosine fall that would reach 0 one step after the last."""
    if step <= warmup:
        return step / (warmup + 1)
    done = (step - 1 - warmup) / max(1, steps - warmup)
    if schedule == "linear":
        return 1 - done
    if schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * done))
    return 1.0


def micro_batches(
    samples: Sequence[Sample], reader: Callable[[Sample], Mind], token_budget: int
) -> Iterator[list[Sample]]:
    """Cut samples into batches of at most `token_budget` tokens, and of at least one sample, as
    `ttrl_pop.packing.pack.Load` counts them.

    Samples whose prompt has one reader stand together, as prompts of one reader do: a prompt counts once in each batch,
    and so does what all prompts begin with. Short ones come first, so that the sequences of a batch are of nearly one
    length.
    """
    trees: dict[tuple[tuple[int, ...], Mind], list[Sample]] = {}
    for sample in samples:
        trees.setdefault((sample.rollout.prompt_ids, reader(sample)), []).append(sample)
    load = Load(prompt_ids for prompt_ids, _ in trees)
    places = {mind: place for place, mind in enumerate(dict.fromkeys(mind for _, mind in trees))}
    by_reader = sorted(trees.items(), key=lambda item: (places[item[0][1]] if load.shared else 0, len(item[0][0])))
    batch: list[Sample] = []
    for prompt, tree in by_reader:
        for sample in sorted(tree, key=lambda sample: len(sample.rollout.completion_ids)):
            own = len(sample.rollout.completion_ids) - 1
            if batch and load.with_more(*prompt, own) > token_budget:
                yield batch
                batch = []
                load.clear()
            load.add(*prompt, own)
            batch.append(sample)
    if batch:
        yield batch


def pad(rows: Sequence[Tensor], like_BT: Tensor) -> Tensor:
    """Rows of different lengths as one tensor of the shape, type and device of `like_BT`, zeros on the right."""
    padded = torch.zeros_like(like_BT, requires_grad=False)
    for row, values in zip(padded, rows, strict=True):
        row[: len(values)] = values
    return padded


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
