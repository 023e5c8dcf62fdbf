"""Reports and tallies as JSON rows."""

from collections.abc import Iterator, Mapping
from typing import Any

from ttrl_pop.report.gold import label_correct
from ttrl_pop.types import AnswerKey, Same, StepReport, Tally


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
    return row | against_gold(tally, answers, same)


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
    return row | against_gold(tally, answers, same)


def rollout_rows(tally: Tally, rewards: bool = True) -> Iterator[dict[str, Any]]:
    """Each rollout of a group with its answer and reward, as kept in RUN/rollouts; `sample` prints no `rewards`."""
    for sample, rollout in enumerate(tally.group.rollouts_G):
        yield {
            "id": tally.group.problem.id,
            "form": "chat" if tally.group.problem.is_chat else "raw",
            "rollout": sample,
            "mind": rollout.mind.seed,
            "text": rollout.text,
            "answer": tally.answers_G[sample],
            **({"reward": tally.rewards_G[sample]} if rewards else {}),
            "finish_reason": rollout.finish_reason,
            "policy_version": rollout.policy_version,
            "prompt_tokens": len(rollout.prompt_ids),
            "completion_ids": list(rollout.completion_ids),
            "logprobs": [round(logprob, 6) for logprob in rollout.logprobs],
        }


def against_gold(tally: Tally, answers: AnswerKey, same: Same) -> dict[str, Any]:
    correct = label_correct(tally, answers, same)
    return {} if correct is None else {"gold": answers[tally.group.problem.id], "correct": correct}
