"""A study's folder: what it is made from, which runs it has, and how many rollouts make another arm's tokens."""

import datetime
from pathlib import Path

import pytest
from fakes import PROBLEMS

from ttrl_pop.config import MOST_ROLLOUTS, Config
from ttrl_pop.errors import UsageError
from ttrl_pop.study.cells import begin, cells, opened, with_rollouts, with_tokens_of
from ttrl_pop.study.design import Study, designed, parse_study
from ttrl_pop.study.figures import Figures
from ttrl_pop.types import AnswerKey, GoldAnswer, ProblemSet

TODAY = datetime.date(2026, 11, 27)
TEXT = '[arms.a]\nseed = 4\n[arms.b]\nsteps = 0\npopulation.minds = 3\n[equal_tokens]\nb = "a"\n'


def study_of(text: str = TEXT) -> Study:
    return designed(parse_study(text, "mine"))


def problems() -> ProblemSet:
    return ProblemSet(PROBLEMS, AnswerKey({"p0": GoldAnswer("56", ("56.0",))}), "f", "hf:some@commit")


def test_a_study_under_way_is_read_back_from_its_folder(tmp_path: Path) -> None:
    folder = begin(tmp_path / "s", study_of(), problems(), TODAY)
    found, read = opened(folder)
    assert read.problems == PROBLEMS
    assert dict(read.answers) == {"p0": "56"}
    assert read.answers["p0"].others == ("56.0",)  # type: ignore[attr-defined]
    assert (found.source, read.source) == ("hf:some@commit", "hf:some@commit")
    assert (found.name, found.seeds, found.equal_tokens) == ("mine", 3, {"b": "a"})


def test_every_run_of_a_study_has_the_day_on_which_it_began(tmp_path: Path) -> None:
    found, _ = opened(begin(tmp_path / "s", study_of(), problems(), TODAY))
    assert {config.problems.date for config in found.arms.values()} == {TODAY}
    other = study_of("[settings]\nproblems.date = 2026-01-02\n[arms.a]")
    assert opened(begin(tmp_path / "t", other, problems(), TODAY))[0].arms["a"].problems.date == datetime.date(
        2026, 1, 2
    )


def test_every_run_of_a_study_has_the_shards_of_the_processes_that_began_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "3")
    began = begin(tmp_path / "s", study_of(), problems(), TODAY)
    monkeypatch.delenv("WORLD_SIZE")
    assert {config.shards for config in opened(began)[0].arms.values()} == {4}
    mine = begin(tmp_path / "t", study_of("[settings]\nshards = 8\n[arms.a]"), problems(), TODAY)
    assert opened(mine)[0].arms["a"].shards == 8


def test_every_arm_has_a_run_before_any_has_two_each_with_a_seed_of_its_own(tmp_path: Path) -> None:
    found = [(cell.run.path.name, cell.config.seed) for cell in cells(tmp_path, study_of())]
    assert found == [("a-0", 4), ("b-0", 0), ("a-1", 5), ("b-1", 1), ("a-2", 6), ("b-2", 2)]


@pytest.mark.parametrize(
    ("count", "samples"), [(90.0, 30), (91.4, 30), (91.6, 31), (0.2, 1), (1e9, MOST_ROLLOUTS // 3)]
)
def test_rollouts_are_shared_among_the_minds(count: float, samples: int) -> None:
    config = Config.model_validate({"population": {"minds": 3}})
    assert with_rollouts(config, count).population.samples_per_mind == samples


def test_another_arms_tokens_make_rollouts_by_the_length_of_the_untrained(tmp_path: Path) -> None:
    *_, cell = cells(tmp_path, study_of())
    other = Figures({}, {}, {}, tokens=1200, rollouts=100, untrained_length=8.0, entropy=None)
    assert with_tokens_of(cell, other, problems=5).config.group_size == 30


def test_a_folder_that_is_taken_is_refused(tmp_path: Path) -> None:
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "config.toml").write_text("")
    with pytest.raises(UsageError):
        begin(tmp_path / "s", study_of(), problems(), TODAY)
