"""learn: tallies → one or more optimizer steps on adapter and population → update.

GRPO on the formulas of `ttrl_pop.learn.grpo`. What is particular here:
1. The old log-probabilities are those of the first pass, detached: on-policy with one update, and no extra forward.
2. Groups without a signal are skipped. They stay in the normaliser, so skipping saves time and changes no gradient;
   with a KL to the base model, to which every rollout contributes, nothing is skipped.
3. Dropout is off and the model in eval mode: the learner sees the distribution that was sampled.
4. How a step is cut into micro-batches (`ttrl_pop.learn.micro_batches`) changes no gradient.
5. Gradients of shards are added in one fixed tree (`ttrl_pop.ranks.shards`), by as many processes as there are. The
   first has the optimizer; the others compute gradients of their shards (`Learner.study`, `Learner.differentiate`).
"""

import math
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import TypeAlias

import torch
from torch import Tensor, nn

from ttrl_pop.config import Config, LearnConfig
from ttrl_pop.errors import DivergenceError, SamplerMismatchError, StaleRolloutError
from ttrl_pop.learn import grpo
from ttrl_pop.learn.micro_batches import MicroBatches, Sample
from ttrl_pop.learn.objective import Sums, base_logprobs, mind_of, objective
from ttrl_pop.learn.trained import LearnerState, Trained
from ttrl_pop.model.forward import recompute_layers
from ttrl_pop.model.policy import Policy
from ttrl_pop.model.replicas import tell
from ttrl_pop.packing.budget import learner_tokens
from ttrl_pop.ranks.orders import Counted, Differentiate, Learn
from ttrl_pop.ranks.ranks import ALONE, Ranks
from ttrl_pop.ranks.shards import cut, together, total
from ttrl_pop.report.estimators import mean
from ttrl_pop.types import Mind, Rollout, Tally, Update

Place: TypeAlias = tuple[int, int]
"""Number of a tally in its step, and of a rollout in its group."""

ELSEWHERE = torch.empty(0)
"""In place of old log-probabilities that another process has."""


def teaches(tally: Tally, weight: float, options: LearnConfig) -> bool:
    """Whether the rewards of a group have a say in the update; its rollouts may have one by their KL all the same.

    Args:
        weight: factor on its advantages.
    """
    # Where labellers abstained, rewards that ask for no label still tell; where nobody answered, none does.
    answered = tally.label is not None or bool(tally.clusters)
    rewards_G = torch.tensor(tally.rewards_G[: options.rollouts], dtype=torch.float64)
    return answered and weight > 0 and grpo.has_signal(rewards_G)


class Learner:
    """A policy's optimizer, and all that an update is made with. Nothing but `learn` changes the policy's weights."""

    def __init__(self, policy: Policy, config: Config, ranks: Ranks = ALONE) -> None:
        self.policy = policy
        self.config = config
        self.ranks = ranks
        self.shards = config.shards or 1
        self.bad_in_a_row = 0
        self._micro_batches = MicroBatches(
            self._reader, learner_tokens(config.learn.token_budget, policy.device, policy.network)
        )
        if config.learn.checkpointing:
            recompute_layers(policy.network)
        self.trained = Trained(policy, keep_average=config.vote.labels == "average")
        options = config.learn
        groups = [
            {
                "params": list(self.trained.adapter.values()),
                "lr": options.lr,
                "weight_decay": options.weight_decay,
            },
            {"params": list(self.trained.population.values()), "lr": options.population_rate, "weight_decay": 0.0},
        ]
        self.base_lrs = [options.lr, options.population_rate]
        self.optimizer = torch.optim.AdamW(
            [group for group in groups if group["params"]], fused=policy.device.type == "cuda"
        )

    @property
    def token_budget(self) -> int:
        """Tokens of a micro-batch: those of the configuration, or fewer since memory ran out."""
        return self._micro_batches.token_budget

    @token_budget.setter
    def token_budget(self, tokens: int) -> None:
        self._micro_batches.token_budget = tokens

    def learn(
        self,
        tallies: Sequence[Tally],
        step: int,
        weights: Mapping[str, float] | None = None,
        bonuses: Mapping[str, Sequence[float]] | None = None,
    ) -> Update:
        """Update the policy from the tallies of a step, in the order of the problems.

        Args:
            weights: factor on the advantages of each problem, by id; a group with 0 has no signal. None: 1 for all.
            bonuses: added to the advantages of a problem's rollouts before that, in mean sizes of them, by problem id.

        Raises:
            StaleRolloutError: a rollout was written by another version of the policy.
            DivergenceError: `max_bad_updates` updates in a row had a loss or gradient that was not finite.
            SamplerMismatchError: the sampler's log-probabilities are further from the learner's than is allowed.
        """
        options = self.config.learn
        self._check_versions(tallies)
        ordered = sorted(tallies, key=lambda tally: tally.group.problem.index)
        samples, used, skipped = self._samples(ordered, weights or {}, bonuses or {})
        lrs = self._set_learning_rates(step)
        sums, updates, bad = Sums(), 0, 0
        for _ in range(options.updates_per_step if samples else 0):
            done = self._update(samples)
            if done is not None:
                sums.add(done)
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
        # The same noise for all updates of a step, whose rollouts were written with it.
        self.policy.version += self.policy.population.decay()
        vote = self.config.vote
        self.trained.extend_average(average_decay(step, self.config.steps, vote.average_decay, vote.average_decay_end))
        tokens = max(sums.tokens, 1)
        return Update(
            policy_version=self.policy.version,
            loss=mean(sums.losses),
            grad_norm=mean(sums.norms),
            population_grad_norm=mean(sums.population_norms) if self.trained.population else None,
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
        return self.trained.tensors(self.optimizer)

    def load_state_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over what `state_tensors` gave."""
        self.trained.load_tensors(self.optimizer, tensors)

    def snapshot(self) -> LearnerState:
        """A copy of the trained parameters and the optimizer, to go back to with `restore`."""
        return LearnerState(
            parameters=self.trained.copy(),
            optimizer={name: value.clone() for name, value in self.state_tensors().items()},
            policy_version=self.policy.version,
            bad_in_a_row=self.bad_in_a_row,
        )

    def restore(self, state: LearnerState) -> None:
        """Undo all updates since `snapshot`."""
        self.trained.put(state.parameters)
        self.optimizer.state.clear()
        self.load_state_tensors(state.optimizer)
        self.policy.version, self.bad_in_a_row = state.policy_version, state.bad_in_a_row

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
            remedy = (
                "Let the population's noise be a pure function of the mind's seed"
                if self.config.backend == "hf"
                else "Start a new run with --backend hf"
            )
            raise SamplerMismatchError(
                f"step {step}: log-probabilities of sampler and learner differ by {gap:.2g} nats per token, more than "
                f"learn.max_logprob_gap {limit:.2g}; the engine wrote with other minds or weights than the learner's. "
                f"{remedy}, or with a higher limit if rounding explains it"
            )

    def _samples(
        self, tallies: Sequence[Tally], weights: Mapping[str, float], bonuses: Mapping[str, Sequence[float]]
    ) -> tuple[list[Sample], int, int]:
        """The rollouts that carry a gradient, with advantage and token weight; groups used and skipped."""
        options = self.config.learn
        entries: list[tuple[Rollout, float, bool, Place]] = []
        used = 0
        for number, tally in enumerate(tallies):
            # All have voted; what is normalised and learned from are the first ones.
            rewards_G = torch.tensor(tally.rewards_G[: options.rollouts], dtype=torch.float64)
            weight = weights.get(tally.group.problem.id, 1.0)
            signal = teaches(tally, weight, options)
            keep = signal or options.kl > 0
            advantages_G = grpo.advantages(rewards_G, options.loss)
            if bonus := bonuses.get(tally.group.problem.id):
                advantages_G += advantages_G.abs().mean() * torch.tensor(bonus[: options.rollouts], dtype=torch.float64)
            advantages_G *= weight
            advantages = advantages_G.tolist() if signal else [0.0] * len(rewards_G)
            counted = [
                (rollout, advantage, keep, (number, member))
                for member, (rollout, advantage) in enumerate(
                    zip(tally.group.rollouts_G[: options.rollouts], advantages, strict=True)
                )
                if not (options.mask_truncated and rollout.finish_reason == "length")
            ]
            used += keep and bool(counted)
            entries += counted
        skipped = len(tallies) - used
        if not entries:
            return [], used, skipped
        lengths = torch.tensor([len(rollout.completion_ids) for rollout, *_ in entries])
        token_weights = grpo.token_weights(lengths, options.loss, self.config.sampling.max_new_tokens).tolist()
        kept = [
            (Sample(rollout, advantage, weight), place)
            for (rollout, advantage, keep, place), weight in zip(entries, token_weights, strict=True)
            if keep and rollout.completion_ids
        ]
        samples = [sample for sample, _ in kept]
        self._share_out(samples)
        if self.ranks.leads:
            self.ranks.tell(Learn(self._described(kept, tallies)))
        return samples, used, skipped

    def _share_out(self, samples: Sequence[Sample]) -> None:
        """Give each sample its shard: shards have about as many tokens to read, of prompts and completions."""
        read = [(self._reader(sample), sample.rollout.prompt_ids) for sample in samples]
        order, met, costs = together(read), set(), []
        for i in order:
            costs.append(len(samples[i].rollout.completion_ids) + (0 if read[i] in met else len(read[i][1])))
            met.add(read[i])
        for i, shard in zip(order, cut(costs, self.shards), strict=True):
            samples[i].shard = shard

    def _described(
        self, kept: Sequence[tuple[Sample, Place]], tallies: Sequence[Tally]
    ) -> tuple[tuple[Counted, ...], ...]:
        """The samples of each shard, for processes that know the rollouts."""
        shards_S: list[list[Counted]] = [[] for _ in range(self.shards)]
        for sample, (number, member) in kept:
            problem = tallies[number].group.problem.id
            shards_S[sample.shard].append(Counted(problem, member, sample.advantage, sample.weight))
        return tuple(map(tuple, shards_S))

    def _update(self, samples: Sequence[Sample]) -> Sums | None:
        """One optimizer step on all samples; None where it was skipped for a value that is not finite."""
        is_first = samples[0].old is None
        tell(self.ranks, self.policy, Differentiate(is_first, self.token_budget))
        sums = self.differentiate(samples)
        if self.optimizer.defaults["fused"]:
            # It takes gradients that lie in memory as their parameters do, and no views of transposed ones.
            for parameter in self.trained.parameters:
                parameter.grad = None if parameter.grad is None else parameter.grad.contiguous()
        if self.config.learn.kl_prior and self.trained.population:
            prior = self.config.learn.kl_prior * self.policy.population.kl_to_prior()
            # A population without spread has no KL to lower.
            if prior.requires_grad:
                torch.autograd.backward(prior)
            sums.loss += float(prior.detach())
        limit = self.config.learn.max_grad_norm
        norm = float(nn.utils.clip_grad_norm_(self.trained.adapter.values(), limit))
        population_norm = float(nn.utils.clip_grad_norm_(self.trained.population.values(), limit))
        if not (math.isfinite(sums.loss) and math.isfinite(norm) and math.isfinite(population_norm)):
            self.optimizer.zero_grad(set_to_none=True)
            # A first pass that failed leaves nothing to measure later passes by.
            for sample in samples if is_first else ():
                sample.old = None
            return None
        self.optimizer.step()
        # The fused optimizer does not raise versions, by which offsets and merged weights are known to be stale.
        torch.autograd.graph.increment_version(self.trained.parameters)
        sums.losses, sums.norms, sums.population_norms = [sums.loss], [norm], [population_norm]
        return sums

    def differentiate(self, samples: Sequence[Sample]) -> Sums:
        """Compute the gradient of the own shards of `samples`, together with the other processes, which do the same.

        Returns:
            The totals of all shards. On the first process the parameters have the gradient of all of them.
        """
        own, sums_S, parameters = self.ranks.owned(self.shards), {}, self.trained.parameters
        shards_S: list[list[Sample]] = [[] for _ in range(self.shards)]
        for sample in samples:
            shards_S[sample.shard].append(sample)
        has_gradient = [False] * len(parameters)

        def part(shard: int) -> list[Tensor | None]:
            self.optimizer.zero_grad(set_to_none=True)
            sums_S[shard] = Sums()
            for found in self._micro_batches.map(self._backward, shards_S[shard]):
                sums_S[shard].add(found)
            for number, parameter in enumerate(parameters):
                has_gradient[number] |= parameter.grad is not None
            gradients = [parameter.grad for parameter in parameters]
            if self.shards == 1:
                return gradients
            # With zeros for none, sums of several are the same whoever adds them.
            return [
                torch.zeros_like(parameter) if gradient is None else gradient
                for parameter, gradient in zip(parameters, gradients, strict=True)
            ]

        gradients = total(own, part, _added)
        told = self.ranks.exchange(([sums_S[shard] for shard in own], has_gradient, self.token_budget))
        self.token_budget = min(budget for _, _, budget in told)
        if self.ranks.size > 1:
            self.ranks.add([gradient for gradient in gradients if gradient is not None])
        for number, (parameter, gradient) in enumerate(zip(parameters, gradients, strict=True)):
            parameter.grad = gradient if any(has[number] for _, has, _ in told) else None
        for sample in samples:
            if sample.old is None and sample.shard not in own:
                sample.old = ELSEWHERE
        every = [sums for found, _, _ in told for sums in found]
        return total(range(self.shards), every.__getitem__, Sums.joined)

    def _reader(self, sample: Sample) -> Mind:
        return self.policy.population.reader(mind_of(sample, self.config.learn))

    def _backward(self, batch: Sequence[Sample]) -> Sums:
        """Add the gradient of one micro-batch; all of it or, where that fails, nothing."""
        options, temperature = self.config.learn, self.config.sampling.temperature
        if options.kl:
            unread = [sample for sample in batch if sample.base is None]
            for sample, base in zip(unread, base_logprobs(self.policy, unread, temperature), strict=True):
                sample.base = base
        with ExitStack() as stay:
            loss, found, olds = objective(self.policy, batch, options, temperature, stay)
            gradients = torch.autograd.grad(loss, self.trained.parameters, allow_unused=True)
        # All that can fail has come before the first change.
        self.trained.add_gradients(list(gradients))
        for sample, old in zip(batch, olds, strict=True):
            sample.old = old
        return found

    def _set_learning_rates(self, step: int) -> tuple[float, float]:
        factor = schedule_factor(step, self.config.steps, self.config.learn.warmup_steps, self.config.learn.schedule)
        adapter_lr, population_lr = (lr * factor for lr in self.base_lrs)
        trained = self.trained
        rates = [rate for rate, own in ((adapter_lr, trained.adapter), (population_lr, trained.population)) if own]
        for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
        return adapter_lr, population_lr


def _added(left: list[Tensor | None], right: list[Tensor | None]) -> list[Tensor | None]:
    """The sum of two shards' gradients, in the place of the left one."""
    return [a if a is None or b is None else a.add_(b) for a, b in zip(left, right, strict=True)]


def average_decay(step: int, steps: int, first: float, last: float) -> float:
    """Decay of the average in step 1..steps: from `first` by half a cosine to `last` one step after the last
    (Co-rewarding-II, arXiv 2508.00410)."""
    return last - (last - first) * 0.5 * (1 + math.cos(math.pi * (step - 1) / steps))


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
