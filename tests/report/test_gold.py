"""Every accuracy that is reported is one comparison with gold, also where a grader contradicts itself."""

import pytest

from ttrl_pop.cli.vote import Totals
from ttrl_pop.report.gold import (
    clusters_correct,
    gold_metrics,
    is_right,
    label_correct,
    rollout_accuracy,
    rollouts_correct,
)
from ttrl_pop.report.measures import measure
from ttrl_pop.report.rows import answer_row, vote_row
from ttrl_pop.types import AnswerKey, GoldAnswer, Group, Mind, Problem, Rollout, Tally
from ttrl_pop.vote.graders.base import Grader
from ttrl_pop.vote.graders.choice import ChoiceGrader
from ttrl_pop.vote.graders.exact import ExactGrader
from ttrl_pop.vote.rewards.base import build_reward
from ttrl_pop.vote.rewards.consensus import majority
from ttrl_pop.vote.rules import Rules
from ttrl_pop.vote.vote import vote


class Neighbours(Grader):
    """Letters are equal to those beside them: b to a and to c, while a and c differ."""

    def key(self, answer: str) -> str:
        return answer

    def equal(self, a: str, b: str) -> bool:
        return abs(ord(a) - ord(b)) == 1


def tally_of(answers: str, rules: Rules) -> Tally:
    """A vote on answers of one letter; a space is none."""
    rollouts = (Rollout(Mind(i), (1,), (2,), (0.0,), rf"\boxed{{{a}}}", "stop", 0) for i, a in enumerate(answers))
    return vote(Group(Problem("p", ({"role": "user", "content": "?"},), 0), tuple(rollouts)), rules)


RULES = Rules(Neighbours(), majority)
GOLD = AnswerKey({"p": "c"})


@pytest.mark.parametrize(
    ("answers", "label", "right"),
    [("abc", "a", 2), ("bbac", "b", 3), ("aaab c", "a", 2), ("xxxxa", "x", 0), ("b", "b", 1)],
)
def test_metrics_rows_and_measures_agree_where_a_grader_is_not_transitive(answers: str, label: str, right: int) -> None:
    tally, n = tally_of(answers, RULES), len(answers)
    same = RULES.grader.same
    assert tally.label == label
    metrics = gold_metrics([tally], GOLD, same)
    measured = measure([tally], GOLD, same, [1, n], seed=0).values
    totals = Totals()
    totals.add(tally, RULES, GOLD)
    figures = totals.row("votes")
    for accuracy in (
        *(metrics["rollout/accuracy"], measured[f"avg@{n}"], measured["pass@1"]),
        *(rollout_accuracy(tally, GOLD, same), figures["rollout accuracy"]),
    ):
        assert accuracy == pytest.approx(right / n)
    label_right = label == "b"
    for accuracy in (metrics["vote/label_accuracy"], measured["label_accuracy"], figures["label accuracy"]):
        assert accuracy == float(label_right)
    assert label_correct(tally, GOLD, same) is label_right
    assert answer_row(tally, GOLD, same)["correct"] is vote_row(tally, GOLD, same)["correct"] is label_right
    assert measured[f"maj@{n}"] == float(label_right), "the vote elects a label, not the members of a cluster"
    assert metrics["vote/reward_accuracy"] == measured["reward_accuracy"] == figures["reward accuracy"]


def test_the_gold_reward_pays_the_rollouts_that_are_reported_as_right() -> None:
    reward = build_reward("gold", GOLD, Neighbours())
    tally = tally_of("aabc x", Rules(Neighbours(), reward))
    assert rollouts_correct(tally, GOLD, Neighbours().same) == (False, False, True, True, False, False)
    assert tally.rewards_G == (0.0, 0.0, 1.0, 1.0, 0.0, 0.0)


def test_a_cluster_is_right_if_its_answer_is_whatever_its_other_members_say() -> None:
    tally = tally_of("abcxx", RULES)
    assert [cluster.answer for cluster in tally.clusters] == ["a", "x"]
    assert clusters_correct(tally, rollouts_correct(tally, GOLD, RULES.grader.same) or ()) == (False, False)
    tally = tally_of("bbac", RULES)
    assert clusters_correct(tally, rollouts_correct(tally, GOLD, RULES.grader.same) or ()) == (True,)


def test_without_gold_nothing_is_right_or_wrong() -> None:
    tally, nothing = tally_of("abc", RULES), AnswerKey()
    assert rollouts_correct(tally, nothing, RULES.grader.same) is None
    assert rollout_accuracy(tally, nothing, RULES.grader.same) is None
    assert label_correct(tally, nothing, RULES.grader.same) is None
    assert set(gold_metrics([tally], nothing, RULES.grader.same).values()) == {None}


def test_the_grader_sees_each_spelling_once_and_in_the_order_of_the_rollouts() -> None:
    asked: list[str | None] = []

    def same(answer: str | None, gold: str | None) -> bool:
        asked.append(answer)
        return answer == gold

    rollouts_correct(tally_of("cab cab", RULES), GOLD, same)
    assert asked == ["c", "a", "b", None]


@pytest.mark.parametrize(
    ("grader", "gold", "right", "wrong"),
    [
        (ChoiceGrader, GoldAnswer("A", ["C. elegans"]), ["A", "(a)"], ["C", "C. elegans", "D"]),
        (ExactGrader, GoldAnswer("A", ["C. elegans"]), ["A", "c. elegans"], ["C", "D"]),
        (ChoiceGrader, GoldAnswer("B", ["c"]), ["B"], ["C", "c"]),
        (ExactGrader, GoldAnswer("B", ["c"]), ["B", "c"], ["C"]),
        (ExactGrader, GoldAnswer("B", ["(C)"]), ["B"], ["C"]),
        (ChoiceGrader, GoldAnswer("A", ["A. aegypti"]), ["A", "A. aegypti"], ["B"]),
        (ChoiceGrader, GoldAnswer("A", ["B"]), ["A", "B"], ["C"]),
        (ChoiceGrader, GoldAnswer("A", ["Paris"]), ["A", "Paris"], ["B"]),
    ],
)
def test_the_text_of_a_choice_is_no_label_of_another(
    grader: type[Grader], gold: GoldAnswer, right: list[str], wrong: list[str]
) -> None:
    same = grader().same
    assert [answer for answer in (*right, *wrong) if is_right(answer, gold, same)] == right
