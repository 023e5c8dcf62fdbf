"""Rewards: values by hand, and the answer key's only door."""

from pathlib import Path
from typing import Any

import pytest

from ttrl_pop import rewards
from ttrl_pop.errors import UsageError
from ttrl_pop.graders.exact import ExactGrader
from ttrl_pop.rewards import Ballot, build_reward, frequency, majority
from ttrl_pop.types import AnswerKey

EXAMPLES = Path(__file__).parents[1] / "examples" / "plugins"
GOLD = AnswerKey({"p": "1/3"})


def ballot(*cluster_G: int | None, answers: dict[int, str] | None = None, **changes: Any) -> Ballot:
    """A ballot with these clusters; the answer of cluster i is i unless `answers` says otherwise."""
    answers_G = tuple(None if c is None else (answers or {}).get(c, str(c)) for c in cluster_G)
    sizes = tuple(cluster_G.count(c) for c in sorted({c for c in cluster_G if c is not None}))
    fields = {
        "problem_id": "p",
        "answers_G": answers_G,
        "cluster_G": cluster_G,
        "sizes": sizes,
        "label": (answers or {}).get(0, "0") if sizes else None,
        "texts_G": ("text",) * len(cluster_G),
    }
    return Ballot(**{**fields, **changes})


def test_majority_pays_the_largest_cluster_only() -> None:
    assert majority(ballot(1, 0, None, 0, 2)) == (0.0, 1.0, 0.0, 1.0, 0.0)


def test_majority_of_none_is_nothing() -> None:
    assert majority(ballot(None, None)) == (0.0, 0.0)


def test_frequency_is_the_share_of_all_rollouts() -> None:
    assert frequency(ballot(0, 0, 1, None)) == (0.5, 0.5, 0.25, 0.0)


@pytest.mark.parametrize("cluster_G", [(0, 1, 2), (0,), (0, None, None), (None, None), ()])
def test_frequency_pays_nothing_when_no_two_answers_agree(cluster_G: tuple[int | None, ...]) -> None:
    assert frequency(ballot(*cluster_G)) == (0.0,) * len(cluster_G)


def test_gold_pays_answers_equal_to_gold_whatever_the_majority_says() -> None:
    reward = build_reward("gold", GOLD, ExactGrader())
    votes = ballot(0, 0, 1, None, answers={0: "3", 1: r"\frac13"})
    assert reward(votes) == (0.0, 0.0, 1.0, 0.0)


def test_gold_names_the_problem_without_a_gold_answer() -> None:
    reward = build_reward("gold", GOLD, ExactGrader())
    with pytest.raises(UsageError, match="problem 'other' has none"):
        reward(ballot(0, problem_id="other"))


def test_gold_refuses_an_empty_answer_key() -> None:
    with pytest.raises(UsageError, match=r"reward gold needs gold answers.*--gold.*answer field"):
        build_reward("gold", AnswerKey(), ExactGrader())


@pytest.mark.parametrize("name", ["majority", "frequency"])
def test_built_in_rewards_need_no_gold(name: str) -> None:
    assert build_reward(name, AnswerKey(), ExactGrader()) is getattr(rewards, name)


@pytest.fixture
def plug_ins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_rewards.py").write_text(
        "class Plain:\n"
        "    def __init__(self, *given): self.given = given\n"
        "    def __call__(self, ballot): return (0.0,) * len(ballot.answers_G)\n"
        "class Oracle(Plain):\n"
        "    needs_gold = True\n"
        "number = 3\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))


@pytest.mark.usefixtures("plug_ins")
def test_only_a_reward_that_asks_for_gold_gets_the_answer_key() -> None:
    grader = ExactGrader()
    plain: Any = build_reward("my_rewards:Plain", GOLD, grader)
    oracle: Any = build_reward("my_rewards:Oracle", GOLD, grader)
    assert plain.given == ()
    assert oracle.given == (GOLD, grader)


@pytest.mark.usefixtures("plug_ins")
def test_a_reward_that_is_not_callable_is_refused() -> None:
    with pytest.raises(UsageError, match=r"must be callable.*'my_rewards:number', a int"):
        build_reward("my_rewards:number", GOLD, ExactGrader())


def test_example_reward_loads_as_a_plug_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLES))
    reward = build_reward("reward_short:short_majority", AnswerKey(), ExactGrader())
    votes = ballot(0, 0, 1, None, 0, texts_G=("x" * 10, "x" * 40, "", "x" * 20, "x" * 20))
    assert reward(votes) == (1.0, 0.5, 0.0, 0.0, 1.0)
