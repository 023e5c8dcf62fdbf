"""Report: tallies, an update and gold answers → a step in figures, one row of metrics.jsonl."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence

from ttrl_pop.report.estimators import mean
from ttrl_pop.report.gold import gold_metrics
from ttrl_pop.report.minds import agreement
from ttrl_pop.types import AnswerKey, Metrics, Same, StepReport, Tally, Update


def step_report(
    step: int,
    tallies: Sequence[Tally],
    update: Update,
    population: Metrics,
    answers: AnswerKey,
    same: Same,
    times: Mapping[str, float],
    flips: float | None = None,
    first_label: float | None = None,
    skipped: Mapping[str, int] | None = None,
    held: Metrics | None = None,
    alarm: Callable[[Metrics], str | None] = lambda metrics: None,
) -> StepReport:
    """The figures of one step.

    Args:
        flips: share of the problems seen before whose label has changed.
        first_label: mean share of votes that the first label of a problem has.
        skipped: groups that teach nothing, by cause.
        held: figures of problems held out, of the policy that wrote the rollouts.
        population: figures of the population after the update.
        times: seconds spent, keyed `time/...`.
    """
    rollouts = [rollout for tally in tallies for rollout in tally.group.rollouts_G]
    logprobs = [logprob for rollout in rollouts for logprob in rollout.logprobs]
    rewards = [reward for tally in tallies for reward in tally.rewards_G]
    agreements = [agreement(tally) for tally in tallies]
    tokens = sum(len(rollout.completion_ids) for rollout in rollouts)
    prompts = sum(len(rollout.prompt_ids) for rollout in rollouts)
    metrics: Metrics = {
        "vote/agreement": mean([tally.agreement for tally in tallies]),
        "vote/margin": mean([tally.margin for tally in tallies]),
        "vote/entropy": mean([tally.entropy for tally in tallies]),
        "vote/abstained": sum(tally.abstained for tally in tallies) / len(rollouts),
        "vote/ties": sum(tally.tie for tally in tallies),
        "vote/unlabelled": sum(tally.label is None for tally in tallies),
        "vote/timeouts": sum(tally.timeouts for tally in tallies),
        "vote/flip_rate": flips,
        "vote/first_label": first_label,
        "vote/commonest_label": _commonest_share([tally.label for tally in tallies]),
        "vote/unique": mean([float(len(tally.clusters)) for tally in tallies]),
        "vote/same_mind": mean([found.same for found in agreements]),
        "vote/other_minds": mean([found.other for found in agreements]),
        **gold_metrics(tallies, answers, same),
        **(held or {}),
        "rollout/count": len(rollouts),
        "rollout/length": tokens / len(rollouts),
        "rollout/truncated": sum(rollout.finish_reason == "length" for rollout in rollouts) / len(rollouts),
        # −mean log p of sampled tokens is an unbiased estimate of the policy's entropy per token, and costs nothing.
        "rollout/entropy": -sum(logprobs) / len(logprobs) if logprobs else None,
        "reward/mean": sum(rewards) / len(rewards),
        "learn/loss": update.loss,
        "learn/kl": update.kl,
        "learn/grad_norm": update.grad_norm,
        "learn/population_grad_norm": update.population_grad_norm,
        "learn/clip_share": update.clip_share,
        "learn/logprob_gap": update.logprob_gap,
        "learn/logprob_gap_max": update.logprob_gap_max,
        "learn/tokens": update.tokens,
        "learn/groups_used": update.groups_used,
        "learn/groups_skipped": update.groups_skipped,
        **{f"learn/skipped_{cause}": count for cause, count in (skipped or {}).items()},
        "learn/updates": update.updates,
        "learn/bad_updates": update.bad_updates,
        "learn/token_budget": update.token_budget,
        "learn/lr": update.lr,
        "learn/population_lr": update.population_lr,
        "learn/policy_version": update.policy_version,
        **population,
        **times,
        "time/tokens_per_s": (tokens + prompts) / times["time/sample"] if times["time/sample"] > 0 else None,
    }
    return StepReport(step, metrics, alarm(metrics))


def _commonest_share(labels: Sequence[str | None]) -> float:
    """Share of the problems that have the most frequent label, by spelling; 0 for one problem, which says nothing."""
    counts = Counter(label for label in labels if label is not None)
    return max(counts.values(), default=0) / len(labels) if len(labels) > 1 else 0.0
