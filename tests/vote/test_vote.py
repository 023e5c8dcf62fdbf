"""The vote: clustering by properties, and the bugs of the reference as tests."""

import math
import sys
import threading
import types
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ttrl_pop.config import VoteConfig
from ttrl_pop.errors import UsageError
from ttrl_pop.types import AnswerKey, FinishReason, Group, Mind, Problem, Rollout, Tally
from ttrl_pop.vote.extract.extractor import build_extractor
from ttrl_pop.vote.graders.base import Grader
from ttrl_pop.vote.graders.exact import ExactGrader
from ttrl_pop.vote.rewards.base import Ballot
from ttrl_pop.vote.rewards.consensus import frequency, majority
from ttrl_pop.vote.rules import Rules, build_rules
from ttrl_pop.vote.vote import elect, vote, vote_in_background


def group(texts: Sequence[str], finish: FinishReason = "stop", is_chat: bool = True) -> Group:
    prompt = ({"role": "user", "content": "?"},) if is_chat else "?"
    rollouts = (Rollout(Mind(i), (1,), (2,), (0.0,), text, finish, 0) for i, text in enumerate(texts))
    return Group(Problem("p", prompt, 0), tuple(rollouts))


def vote_on(answers: Sequence[str | None], grader: Grader | None = None) -> Tally:
    """Vote on boxed answers; None writes no box."""
    texts = ["I do not know." if answer is None else rf"\boxed{{{answer}}}" for answer in answers]
    return vote(group(texts), Rules(grader or ExactGrader(), frequency))


def test_a_deep_box_is_extracted_and_graded() -> None:
    deep = "{" * 100_000 + "}" * 100_000
    assert vote_on([deep, deep, "1"]).label == deep


def test_bug_1_missing_answers_never_win_and_are_never_rewarded() -> None:
    tally = vote_on([None, None, None, "", "$$", "7"])
    assert tally.answers_G == (None, None, None, None, None, "7")
    assert tally.label == "7"
    assert tally.agreement == 1 / 6
    rewards = vote(tally.group, Rules(ExactGrader(), majority)).rewards_G
    assert rewards == (0.0, 0.0, 0.0, 0.0, 0.0, 1.0)


def test_all_abstain_gives_no_label_and_no_reward() -> None:
    tally = vote_on([None, None])
    assert (tally.label, tally.clusters, tally.rewards_G, tally.abstained) == (None, (), (0.0, 0.0), 2)


def test_bug_2_the_label_is_the_extracted_answer_itself() -> None:
    assert vote_on([r"\frac{1}{2}", r"\frac{1}{2}", "2"]).label == r"\frac{1}{2}"


def test_bug_3_a_boxed_choice_is_not_overruled_by_the_sentence_after_it() -> None:
    texts = [r"\boxed{C}. This is a hard question: A or B?", r"I say \boxed{C}", r"\boxed{A}"]
    tally = vote(group(texts), Rules(ExactGrader(), majority))
    assert (tally.label, tally.rewards_G) == ("C", (1.0, 1.0, 0.0))


def test_bug_4_spellings_of_one_number_do_not_split_the_vote() -> None:
    tally = vote_on(["0.50", "3", r"\frac12", "3", "1/2"])
    assert [cluster.members for cluster in tally.clusters] == [(0, 2, 4), (1, 3)]
    assert tally.rewards_G == (0.6, 0.4, 0.6, 0.4, 0.6)


def test_bug_5_numbers_of_truncated_rollouts_do_not_vote() -> None:
    texts = ["So 12 + 30 is 4", "Answer: 4", r"\boxed{42} as", "Answer: 42\nsince"]
    tally = vote(group(texts, finish="length"), Rules(ExactGrader(), majority))
    assert tally.answers_G == (None, None, "42", "42")
    assert tally.agreement == 0.5


def test_raw_prompts_are_read_by_their_first_line() -> None:
    tally = vote(group([" 56.\nQ: 9", " 56\n", " 5"], "length", is_chat=False), Rules(ExactGrader(), majority))
    assert tally.answers_G == ("56", "56", None)


def test_the_answer_of_a_cluster_is_its_commonest_spelling_first_of_equals() -> None:
    assert vote_on(["0.5", "1/2", "1/2", "2"]).label == "1/2"
    assert vote_on([r"\frac12", "1/2", "0.5", "2"]).label == "0.5"


def test_ties_fall_to_the_smaller_key_whatever_the_order() -> None:
    assert vote_on(["9", "10", "9", "10"]).label == "10"
    assert vote_on(["10", "9", "10", "9"]).label == "10"
    assert vote_on(["10", "9", "10", "9"]).tie


class Pairs(Grader):
    """Equal are the ordered pairs it is given, and nothing else."""

    def __init__(self, *pairs: str) -> None:
        self.pairs = set(pairs)

    def key(self, answer: str) -> str:
        return answer.lower()

    def equal(self, a: str, b: str) -> bool:
        return (a + b).lower() in self.pairs


def test_clusters_merge_only_where_the_grader_agrees_in_both_directions() -> None:
    assert [c.members for c in vote_on("aabbc", Pairs("ab", "cb", "bc")).clusters] == [(2, 3, 4), (0, 1)]


def test_clusters_merge_along_a_chain_that_is_not_transitive() -> None:
    chain = Pairs("ac", "ca", "cb", "bc", "de", "ed")
    tally = vote_on("abxxcde", chain)
    assert [c.members for c in tally.clusters] == [(0, 1, 4), (5, 6), (2, 3)]
    assert tally.label == "a"


def test_a_merged_cluster_is_ranked_by_its_smallest_key() -> None:
    assert vote_on("azbb", Pairs("az", "za")).label == "a"
    assert vote_on("czbb", Pairs("cz", "zc")).label == "b"


def test_merging_asks_about_the_commonest_spelling_of_a_key() -> None:
    class Exclaiming(Pairs):
        def equal(self, a: str, b: str) -> bool:
            return {a, b} == {"A", "b"}

    assert len(vote_on(["A", "a", "A", "b"], Exclaiming()).clusters) == 1
    assert len(vote_on(["A", "a", "a", "b"], Exclaiming()).clusters) == 2


answers = st.lists(
    st.sampled_from(["1/2", "0.5", r"\frac12", "2", "2.0", "Paris", "paris", "a", "b", "c", "", None]),
    min_size=1,
    max_size=12,
)
graders = st.sampled_from([ExactGrader(), Pairs("ab", "ba", "bc", "cb", "2paris"), Pairs("ac", "ca", "a2", "2a")])


@settings(deadline=None)
@given(answers, graders, st.data())
def test_the_order_of_rollouts_does_not_matter(
    given_answers: list[str | None], grader: Grader, data: st.DataObject
) -> None:
    order = data.draw(st.permutations(range(len(given_answers))))
    before = vote_on(given_answers, grader)
    after = vote_on([given_answers[i] for i in order], grader)
    assert after.label == before.label
    assert after.rewards_G == tuple(before.rewards_G[i] for i in order)
    assert after.answers_G == tuple(before.answers_G[i] for i in order)
    assert [(c.answer, {order[m] for m in c.members}) for c in after.clusters] == [
        (c.answer, set(c.members)) for c in before.clusters
    ]


@settings(deadline=None)
@given(answers, graders)
def test_clusters_partition_the_rollouts_that_answered(given_answers: list[str | None], grader: Grader) -> None:
    tally = vote_on(given_answers, grader)
    members = [member for cluster in tally.clusters for member in cluster.members]
    assert sorted(members) == [i for i, answer in enumerate(tally.answers_G) if answer is not None]
    sizes = [len(cluster.members) for cluster in tally.clusters]
    assert sizes == sorted(sizes, reverse=True)
    assert all(list(c.members) == sorted(c.members) for c in tally.clusters)
    assert tally.agreement == (sizes[0] if sizes else 0) / len(given_answers)


def test_the_ballot_says_what_the_vote_found() -> None:
    seen: list[Ballot] = []

    def spy(ballot: Ballot) -> tuple[float, ...]:
        seen.append(ballot)
        return (0.0,) * len(ballot.answers_G)

    texts = [r"\boxed{1}", r"\boxed{2}", "?", r"\boxed{2.0}"]
    vote(group(texts), Rules(ExactGrader(), spy))
    expected = Ballot(
        problem_id="p",
        answers_G=("1", "2", None, "2.0"),
        cluster_G=(1, 0, None, 0),
        shares=(0.5, 0.25),
        label="2",
        label_cluster=0,
        texts_G=tuple(texts),
        finished_G=(True,) * 4,
        lengths_G=(1,) * 4,
        logprob_G=(0.0,) * 4,
        token_limit=None,
    )
    assert seen == [expected]


def ballots_of_minds(*votes: tuple[int, str | None, float]) -> Group:
    """Rollouts of (mind, answer, mean log p)."""
    rollouts = (
        Rollout(
            Mind(mind),
            (1,),
            (2, 3),
            (logprob - 0.25, logprob + 0.25),
            "" if answer is None else rf"\boxed{{{answer}}}",
            "stop",
            0,
        )
        for mind, answer, logprob in votes
    )
    return Group(Problem("p", ({"role": "user", "content": "?"},), 0), tuple(rollouts))


def shares(group: Group, weight: Any) -> dict[str, float]:
    tally = vote(group, Rules(ExactGrader(), majority, weight=weight))
    return {cluster.answer: float(cluster.share) for cluster in tally.clusters}


def test_one_vote_per_mind() -> None:
    # Mind 1: a, a, b → a. Mind 2: b, c → half each. Mind 3 abstains and stays in the whole. Mind 4: b, and silence.
    votes = [(1, "aa"), (1, "aa"), (1, "bb"), (2, "bb"), (2, "cc"), (3, None), (3, None), (4, "bb"), (4, None)]
    group = ballots_of_minds(*((mind, answer, -1.0) for mind, answer in votes))
    assert shares(group, "mind") == {"bb": 0.375, "aa": 0.25, "cc": 0.125}
    assert shares(group, "rollout") == pytest.approx({"bb": 3 / 9, "aa": 2 / 9, "cc": 1 / 9})
    tie = vote(ballots_of_minds((1, "aa", -1), (1, "aa", -1), (1, "aa", -1), (2, "bb", -1)), MIND)
    assert tie.tie
    assert tie.label == "aa"


MIND = Rules(ExactGrader(), majority, weight="mind")


def test_where_one_mind_wrote_all_each_rollout_is_a_vote() -> None:
    """By its favourite alone a mind would agree with itself whatever it said."""
    answers = ("aa", "bb", "bb", None)
    for weight in ("rollout", "mind"):
        assert shares(ballots_of_minds(*((7, answer, -1.0) for answer in answers)), weight) == {"bb": 0.5, "aa": 0.25}
    assert vote(ballots_of_minds(*((7, answer, -1.0) for answer in answers)), MIND).agreement == 0.5


def test_votes_by_confidence() -> None:
    group = ballots_of_minds((1, "aa", -3.0), (2, "aa", -3.0), (3, "bb", -1.0), (4, None, -0.5))
    weights = [math.exp(x) for x in (-3, -3, -1, -0.5)]
    expected = {"bb": weights[2] / sum(weights), "aa": 2 * weights[0] / sum(weights)}
    assert shares(group, "confidence") == pytest.approx(expected)
    tally = vote(group, Rules(ExactGrader(), majority, weight="confidence"))
    assert (tally.label, tally.rewards_G) == ("bb", (0, 0, 1, 0))


SPELLINGS = {"1/2": ["0.5", r"\frac12", ".50", "$1/2$"], "7": ["7.0", "+7", "x = 7", r"7\text{ cm}"], "x+1": ["x + 1"]}
rollouts_of_minds = st.lists(
    st.tuples(
        st.integers(0, 3), st.sampled_from([*SPELLINGS, None]), st.floats(-5, 0), st.integers(0, 3), st.integers(0, 99)
    ),
    min_size=1,
    max_size=12,
)


@pytest.mark.slow
@settings(max_examples=1000, deadline=None)
@given(rollouts_of_minds, st.sampled_from(["rollout", "mind", "confidence"]))
def test_order_and_spelling_change_no_vote(votes: list[tuple[int, str | None, float, int, int]], weight: Any) -> None:
    rules = Rules(ExactGrader(), frequency, weight=weight)
    plain = vote(ballots_of_minds(*((mind, answer, logprob) for mind, answer, logprob, _, _ in votes)), rules)
    order = sorted(range(len(votes)), key=lambda i: (votes[i][4], -i))
    respelled = [
        (mind, answer and ([answer, *SPELLINGS[answer]])[spelling % (1 + len(SPELLINGS[answer]))], logprob)
        for mind, answer, logprob, spelling, _ in (votes[i] for i in order)
    ]
    other = vote(ballots_of_minds(*respelled), rules)
    assert other.rewards_G == tuple(plain.rewards_G[i] for i in order)
    assert ExactGrader().same(other.label, plain.label) or (other.label, plain.label) == (None, None)
    assert (other.agreement, other.margin, other.tie) == (plain.agreement, plain.margin, plain.tie)
    assert [sorted(order[m] for m in c.members) for c in other.clusters] == [list(c.members) for c in plain.clusters]


def test_confidence_needs_log_probabilities() -> None:
    bare = group([r"\boxed{1}"])
    bare = replace(bare, rollouts_G=tuple(replace(rollout, logprobs=()) for rollout in bare.rollouts_G))
    with pytest.raises(UsageError, match="needs the log-probabilities"):
        vote(bare, Rules(ExactGrader(), majority, weight="confidence"))


def test_labels_elected_elsewhere_decide_the_reward_and_leave_the_figures_of_the_group() -> None:
    given_group = group([r"\boxed{1}", r"\boxed{1}", r"\boxed{0.5}", "?"])
    rules = Rules(ExactGrader(), majority)
    tally = vote(given_group, rules, labels={"p": r"\frac12"})
    assert (tally.label, tally.label_cluster, tally.rewards_G) == (r"\frac12", 1, (0, 0, 1, 0))
    assert (tally.agreement, tally.margin) == (0.5, 0.25)
    unknown = vote(given_group, rules, labels={"p": "7"})
    assert (unknown.label, unknown.label_cluster, unknown.rewards_G) == ("7", None, (0, 0, 0, 0))
    silent = vote(given_group, rules, labels={"p": None})
    assert (silent.label, silent.label_cluster, silent.rewards_G) == (None, None, (0, 0, 0, 0))
    assert elect(given_group, rules) == "1"
    assert elect(group(["?"]), rules) is None


def test_voting_in_the_background_keeps_the_order_and_overlaps_with_sampling() -> None:
    sampled: list[int] = []
    second_sampled = threading.Event()

    def groups() -> Iterator[Group]:
        for number in range(4):
            sampled.append(number)
            if number == 1:
                second_sampled.set()
            yield replace(group([rf"\boxed{{{number}}}"]), problem=Problem(str(number), "?", number))

    def slow(given_group: Group) -> Tally:
        # The first vote ends only after the second group has been sampled.
        assert second_sampled.wait(30)
        return vote(given_group, Rules(ExactGrader(), majority))

    tallies = list(vote_in_background(groups(), slow))
    assert [tally.group.problem.id for tally in tallies] == ["0", "1", "2", "3"]


def test_the_thread_that_votes_has_started_before_sampling_takes_memory() -> None:
    def groups() -> Iterator[Group]:
        assert any(thread.name.startswith("vote") for thread in threading.enumerate())
        yield group(["1"])

    (tally,) = vote_in_background(groups(), lambda given: vote(given, Rules(ExactGrader(), majority)))
    assert tally.group.problem.id == "p"


def test_an_error_of_a_vote_reaches_the_one_who_iterates() -> None:
    def wrong(_: Group) -> Tally:
        raise UsageError("no such thing")

    with pytest.raises(UsageError, match="no such thing"):
        list(vote_in_background(iter([group(["1"])]), wrong))


@pytest.mark.parametrize("rewards_G", [(1.0,), (1.0, float("nan")), (float("inf"), 0.0)])
def test_a_reward_that_breaks_its_interface_is_refused(rewards_G: tuple[float, ...]) -> None:
    with pytest.raises(UsageError, match=r"one finite number per rollout \(2\)"):
        vote(group(["a", "b"]), Rules(ExactGrader(), lambda _: rewards_G))


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (torch.ones(2), "got a Tensor among them; return a tuple of float(...)"),
        (("1", "0"), "got a str among them; return a tuple of float(...)"),
        (None, "got a NoneType"),
        ((1.0,), "got (1.0,)"),
        ((1.0, math.nan), "got (1.0, nan)"),
    ],
)
@pytest.mark.parametrize("name", ["mine:pay", "0.5*mine:pay+majority"])
def test_an_error_of_a_reward_names_it_and_the_problem(
    monkeypatch: pytest.MonkeyPatch, returned: Any, message: str, name: str
) -> None:
    mine = types.ModuleType("mine")
    monkeypatch.setattr(mine, "pay", lambda ballot: returned, raising=False)
    monkeypatch.setitem(sys.modules, "mine", mine)
    rules = build_rules(VoteConfig(grader="exact", reward=name), AnswerKey())
    with pytest.raises(UsageError) as error:
        vote(group(["a", "b"]), rules)
    rule = "reward 'mine:pay', problem 'p': a reward must return one finite number per rollout (2), "
    assert str(error.value) == rule + message


def test_numbers_of_other_libraries_are_rewards() -> None:
    rewards_G = vote(group(["a", "b"]), Rules(ExactGrader(), lambda _: np.array([1, 0], np.float32))).rewards_G  # type: ignore[arg-type,return-value]
    assert rewards_G == (1.0, 0.0)
    assert {type(value) for value in rewards_G} == {float}


def test_the_key_of_a_grader_must_be_a_text() -> None:
    class Numbers(ExactGrader):
        def key(self, answer: str) -> Any:
            return float(answer)

    with pytest.raises(UsageError, match=r"^grader Numbers: key must return a text, got a float for the answer '5'$"):
        vote(group([r"\boxed{5}"]), Rules(Numbers(), majority))


@pytest.mark.usefixtures("plug_ins")
def test_an_extractor_of_your_own_and_a_blank_answer_of_its_abstains() -> None:
    tally = vote(group(["", "", "5"]), Rules(ExactGrader(), majority, build_extractor("my_extract:whole")))
    assert (tally.answers_G, tally.label) == ((None, None, "5"), "5")


@pytest.mark.usefixtures("plug_ins")
def test_what_reads_answers_is_found_once_and_not_for_every_group(monkeypatch: pytest.MonkeyPatch) -> None:
    config = VoteConfig(extract="my_extract:whole", grader="exact")
    rules = build_rules(config, AnswerKey())
    monkeypatch.delattr("my_extract.whole")
    for is_chat in (True, False):
        assert vote(group(["5"], is_chat=is_chat), rules).label == "5"
    with pytest.raises(UsageError, match="has no 'whole'"):
        build_rules(config, AnswerKey())


@pytest.mark.usefixtures("plug_ins")
def test_an_extractor_must_return_text_or_none() -> None:
    with pytest.raises(UsageError, match="'my_extract:number' must return str or None, got int"):
        vote(group(["a"]), Rules(ExactGrader(), majority, build_extractor("my_extract:number")))
