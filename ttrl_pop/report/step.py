"""report: tallies, update and (here only) gold answers → step report, answer rows, rollout rows."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ttrl_pop.types import AnswerKey, Metrics, Same, StepReport, Tally, Update


def label_correct(tally: Tally, answers: AnswerKey, same: Same) -> bool | None:
    """Whether the label equals the gold answer; None without gold, False without a label."""
    gold = answers.get(tally.group.problem.id)
    return None if gold is None else same(tally.label, gold)


def rollouts_correct(tally: Tally, answers: AnswerKey, same: Same) -> tuple[bool, ...] | None:
    """Whether each rollout's answer equals the gold answer; None without gold."""
    gold = answers.get(tally.group.problem.id)
    if gold is None:
        return None
    verdicts = {answer: same(answer, gold) for answer in set(tally.answers_G)}
    return tuple(verdicts[answer] for answer in tally.answers_G)


def step_report(
    step: int,
    tallies: Sequence[Tally],
    update: Update,
    population: Metrics,
    answers: AnswerKey,
    same: Same,
    times: Mapping[str, float],
    flips: float | None = None,
    timeouts: int = 0,
) -> StepReport:
    """One row of metrics.jsonl.

    Args:
        flips: share of the problems seen before whose label has changed.
        timeouts: verdicts of the grader that did not come in time.
        population: figures of the population after the update.
        times: seconds spent, keyed `time/...`.
    """
    rollouts = [rollout for tally in tallies for rollout in tally.group.rollouts_G]
    logprobs = [logprob for rollout in rollouts for logprob in rollout.logprobs]
    rewards = [reward for tally in tallies for reward in tally.rewards_G]
    tokens = sum(len(rollout.completion_ids) for rollout in rollouts)
    prompts = sum(len(rollout.prompt_ids) for rollout in rollouts)
    metrics: Metrics = {
        "vote/agreement": _mean([tally.agreement for tally in tallies]),
        "vote/margin": _mean([tally.margin for tally in tallies]),
        "vote/entropy": _mean([tally.entropy for tally in tallies]),
        "vote/abstained": sum(tally.abstained for tally in tallies) / len(rollouts),
        "vote/ties": sum(tally.tie for tally in tallies),
        "vote/unlabelled": sum(tally.label is None for tally in tallies),
        "vote/timeouts": timeouts,
        "vote/flip_rate": flips,
        "vote/commonest_label": _commonest_share([tally.label for tally in tallies]),
        "vote/unique": _mean([float(len(tally.clusters)) for tally in tallies]),
        **gold_metrics(tallies, answers, same),
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
    return StepReport(step, metrics)


def metrics_row(report: StepReport) -> dict[str, Any]:
    return {"step": report.step, **report.metrics, **({"alarm": report.alarm} if report.alarm else {})}


def from_metrics_row(row: Mapping[str, Any]) -> StepReport:
    """The report that `metrics_row` made the row of."""
    metrics = {key: value for key, value in row.items() if key not in ("step", "alarm")}
    return StepReport(row["step"], metrics, row.get("alarm"))


def answer_row(tally: Tally, answers: AnswerKey, same: Same) -> dict[str, Any]:
    """The final answer to a problem, as `run` prints it; `gold` and `correct` only where gold is known."""
    row: dict[str, Any] = {
        "id": tally.group.problem.id,
        "answer": tally.label,
        "agreement": tally.agreement,
        "margin": tally.margin,
        "tie": tally.tie,
        "votes": {cluster.answer: len(cluster.members) for cluster in tally.clusters},
        "abstained": tally.abstained,
        "rollouts": len(tally.answers_G),
    }
    return row | _against_gold(tally, answers, same)


def vote_row(tally: Tally, answers: AnswerKey, same: Same) -> dict[str, Any]:
    """The vote on a problem's rollouts, as `vote` prints it; `gold` and `correct` only where gold is known."""
    row: dict[str, Any] = {
        "id": tally.group.problem.id,
        "label": tally.label,
        "agreement": tally.agreement,
        "margin": tally.margin,
        "entropy": tally.entropy,
        "tie": tally.tie,
        "abstained": tally.abstained,
        "rollouts": len(tally.answers_G),
        "clusters": [
            {"answer": cluster.answer, "votes": len(cluster.members), "share": float(cluster.share)}
            for cluster in tally.clusters
        ],
        "rewards": list(tally.rewards_G),
    }
    return row | _against_gold(tally, answers, same)


def rollout_rows(tally: Tally) -> Iterator[dict[str, Any]]:
    """Each rollout of a group with its answer and reward, as kept in RUN/rollouts and printed by `sample`."""
    for sample, rollout in enumerate(tally.group.rollouts_G):
        yield {
            "id": tally.group.problem.id,
            "form": "chat" if tally.group.problem.is_chat else "raw",
            "rollout": sample,
            "mind": rollout.mind.seed,
            "text": rollout.text,
            "answer": tally.answers_G[sample],
            "reward": tally.rewards_G[sample],
            "finish_reason": rollout.finish_reason,
            "policy_version": rollout.policy_version,
            "prompt_tokens": len(rollout.prompt_ids),
            "completion_ids": list(rollout.completion_ids),
            "logprobs": [round(logprob, 6) for logprob in rollout.logprobs],
        }


def _against_gold(tally: Tally, answers: AnswerKey, same: Same) -> dict[str, Any]:
    correct = label_correct(tally, answers, same)
    return {} if correct is None else {"gold": answers[tally.group.problem.id], "correct": correct}


def gold_metrics(tallies: Sequence[Tally], answers: AnswerKey, same: Same) -> Metrics:
    """Shares of labels, of rollouts and of (label or not) verdicts that gold confirms; None where none is known."""
    labels: list[float] = []
    rollouts: list[float] = []
    rewards_right: list[float] = []
    for tally in tallies:
        correct = rollouts_correct(tally, answers, same)
        if correct is None:
            continue
        labels.append(float(bool(label_correct(tally, answers, same))))
        rollouts += [float(right) for right in correct]
        in_label = set(tally.clusters[tally.label_cluster].members) if tally.label_cluster is not None else set()
        rewards_right += [float((i in in_label) == right) for i, right in enumerate(correct)]
    return {
        "vote/label_accuracy": _mean(labels),
        "vote/reward_accuracy": _mean(rewards_right),
        "rollout/accuracy": _mean(rollouts),
    }


def _commonest_share(labels: Sequence[str | None]) -> float:
    """Share of the problems that have the most frequent label, by spelling; of one problem, nothing is said: 0."""
    counts = Counter(label for label in labels if label is not None)
    return max(counts.values(), default=0) / len(labels) if len(labels) > 1 else 0.0


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
