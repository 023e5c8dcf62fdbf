"""The vote: clustering by properties, and the bugs of the reference as tests."""

from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ttrl_pop.errors import UsageError
from ttrl_pop.graders.base import Grader
from ttrl_pop.graders.exact import ExactGrader
from ttrl_pop.rewards import Ballot, frequency, majority
from ttrl_pop.types import FinishReason, Group, Mind, Problem, Rollout, Tally
from ttrl_pop.vote import vote


def group(texts: Sequence[str], finish: FinishReason = "stop", is_chat: bool = True) -> Group:
    prompt = ({"role": "user", "content": "?"},) if is_chat else "?"
    rollouts = (Rollout(Mind(i), (1,), (2,), (0.0,), text, finish, 0) for i, text in enumerate(texts))
    return Group(Problem("p", prompt, 0), tuple(rollouts))


def vote_on(answers: Sequence[str | None], grader: Grader | None = None) -> Tally:
    """Vote on boxed answers; None writes no box."""
    texts = ["I do not know." if answer is None else rf"\boxed{{{answer}}}" for answer in answers]
    return vote(group(texts), "auto", grader or ExactGrader(), frequency)


def test_a_deep_box_is_extracted_and_graded() -> None:
    deep = "{" * 100_000 + "}" * 100_000
    assert vote_on([deep, deep, "1"]).label == deep


def test_bug_1_missing_answers_never_win_and_are_never_rewarded() -> None:
    tally = vote_on([None, None, None, "", "$$", "7"])
    assert tally.answers_G == (None, None, None, None, None, "7")
    assert tally.label == "7"
    assert tally.agreement == 1 / 6
    rewards = vote(tally.group, "auto", ExactGrader(), majority).rewards_G
    assert rewards == (0.0, 0.0, 0.0, 0.0, 0.0, 1.0)


def test_all_abstain_gives_no_label_and_no_reward() -> None:
    tally = vote_on([None, None])
    assert (tally.label, tally.clusters, tally.rewards_G, tally.abstained) == (None, (), (0.0, 0.0), 2)


def test_bug_2_the_label_is_the_extracted_answer_itself() -> None:
    assert vote_on([r"\frac{1}{2}", r"\frac{1}{2}", "2"]).label == r"\frac{1}{2}"


def test_bug_3_a_boxed_choice_is_not_overruled_by_the_sentence_after_it() -> None:
    texts = [r"\boxed{C}. This is a hard question: A or B?", r"I say \boxed{C}", r"\boxed{A}"]
    tally = vote(group(texts), "auto", ExactGrader(), majority)
    assert (tally.label, tally.rewards_G) == ("C", (1.0, 1.0, 0.0))


def test_bug_4_spellings_of_one_number_do_not_split_the_vote() -> None:
    tally = vote_on(["0.50", "3", r"\frac12", "3", "1/2"])
    assert [cluster.members for cluster in tally.clusters] == [(0, 2, 4), (1, 3)]
    assert tally.rewards_G == (0.6, 0.4, 0.6, 0.4, 0.6)


def test_bug_5_numbers_of_truncated_rollouts_do_not_vote() -> None:
    texts = ["So 12 + 30 is 4", "Answer: 4", r"\boxed{42} as", "Answer: 42\nsince"]
    tally = vote(group(texts, finish="length"), "auto", ExactGrader(), majority)
    assert tally.answers_G == (None, None, "42", "42")
    assert tally.agreement == 0.5


def test_raw_prompts_are_read_by_their_first_line() -> None:
    tally = vote(group([" 56.\nQ: 9", " 56\n", " 5"], "length", is_chat=False), "auto", ExactGrader(), majority)
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
    vote(group(texts), "auto", ExactGrader(), spy)
    expected = Ballot("p", ("1", "2", None, "2.0"), (1, 0, None, 0), (2, 1), "2", tuple(texts))
    assert seen == [expected]


@pytest.mark.parametrize("rewards_G", [(1.0,), (1.0, float("nan")), (float("inf"), 0.0)])
def test_a_reward_that_breaks_its_interface_is_refused(rewards_G: tuple[float, ...]) -> None:
    with pytest.raises(UsageError, match=r"one finite number per rollout \(2\)"):
        vote(group(["a", "b"]), "auto", ExactGrader(), lambda _: rewards_G)


@pytest.fixture
def plug_ins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_extract.py").write_text(
        "def whole(text, finish_reason): return text\ndef number(text, finish_reason): return 3\nnothing = None\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))


@pytest.mark.usefixtures("plug_ins")
def test_an_extractor_of_your_own_and_a_blank_answer_of_its_abstains() -> None:
    tally = vote(group(["", "", "5"]), "my_extract:whole", ExactGrader(), majority)
    assert (tally.answers_G, tally.label) == ((None, None, "5"), "5")


@pytest.mark.usefixtures("plug_ins")
def test_an_extractor_must_return_text_or_none() -> None:
    with pytest.raises(UsageError, match="'my_extract:number' must return str or None, got int"):
        vote(group(["a"]), "my_extract:number", ExactGrader(), majority)
