"""Rewards by name: sums, plug-ins, and the answer key's only door."""

from pathlib import Path
from typing import Any

import pytest
from fakes import ROOT, ballot

from ttrl_pop.errors import UsageError
from ttrl_pop.types import AnswerKey
from ttrl_pop.vote.graders.exact import ExactGrader
from ttrl_pop.vote.rewards import consensus
from ttrl_pop.vote.rewards.base import build_reward, paid

EXAMPLES = ROOT / "examples" / "plugins"
GOLD = AnswerKey({"p": "1/3"})


def test_a_sum_of_terms_adds_what_each_pays() -> None:
    reward = build_reward("majority + 0.2*format+ 2*overlong", AnswerKey(), ExactGrader())
    votes = ballot(0, 0, 1, None, lengths_G=(1, 9, 1, 1), finished_G=(True, True, True, False))
    assert reward(votes) == pytest.approx((1.2, 1.2 - 1.0, 0.2, -2.0))
    assert build_reward("0.5*majority", AnswerKey(), ExactGrader())(ballot(0, 1)) == (0.5, 0.0)


@pytest.mark.parametrize(
    "name", ["majority+", "x*majority", "nan*majority", "inf*majority", "majority++format", "2*", "+majority"]
)
def test_a_sum_that_is_none_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match="reward"):
        build_reward(name, AnswerKey(), ExactGrader())


def test_what_a_generator_raises_is_its_own_and_a_number_without_a_float_is_not_finite() -> None:
    def failing(ballot: Any) -> Any:
        yield len(None)  # type: ignore[arg-type]

    def endless(ballot: Any) -> Any:
        while True:
            yield 1.0

    with pytest.raises(TypeError, match="has no len"):
        paid("mine", failing, ballot(0, 1))
    with pytest.raises(UsageError, match=r"one finite number per rollout \(2\), got \(1.0, 1.0, 1.0\)"):
        paid("mine", endless, ballot(0, 1))
    with pytest.raises(UsageError, match="one finite number per rollout"):
        paid("mine", lambda ballot: (10**400, 0), ballot(0, 1))


@pytest.mark.parametrize("name", ["majority", "frequency"])
def test_built_in_rewards_need_no_gold(name: str) -> None:
    assert build_reward(name, AnswerKey(), ExactGrader()) is getattr(consensus, name)


@pytest.fixture
def plug_ins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_rewards.py").write_text(
        "class Plain:\n"
        "    def __init__(self, *given): self.given = given\n"
        "    def __call__(self, ballot): return (0.0,) * len(ballot.answers_G)\n"
        "class Oracle(Plain):\n"
        "    needs_gold = True\n"
        "class Scaled(Plain):\n"
        "    def __init__(self, scale): ...\n"
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
def test_a_reward_class_is_made_without_arguments() -> None:
    with pytest.raises(UsageError, match=r"^reward 'my_rewards:Scaled': a reward class is made without arguments, "):
        build_reward("my_rewards:Scaled", AnswerKey(), ExactGrader())


@pytest.mark.usefixtures("plug_ins")
def test_a_reward_that_is_not_callable_is_refused() -> None:
    with pytest.raises(UsageError, match=r"must be callable.*'my_rewards:number', an int"):
        build_reward("my_rewards:number", GOLD, ExactGrader())


def test_example_reward_loads_as_a_plug_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLES))
    reward = build_reward("reward_short:short_majority", AnswerKey(), ExactGrader())
    votes = ballot(0, 0, 1, None, 0, texts_G=("x" * 10, "x" * 40, "", "x" * 20, "x" * 20))
    assert reward(votes) == (1.0, 0.5, 0.0, 0.0, 1.0)
