"""`ttrl-pop eval`: figures with their intervals, of the base model, of a run, and of both."""

from pathlib import Path

import pytest
from cli.commands import STEPS, rows_of, run, ttrl
from fakes import PROBLEMS, save_tiny
from typer.testing import Result

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("elsewhere")]


def test_eval_measures_with_intervals(place: Path) -> None:
    (row,) = rows_of(ttrl("eval", place / "p.jsonl", "--config", place / "c.toml", "--quiet").stdout)
    assert (row["system"], row["population"], row["problems"], row["rollouts"]) == ("base", "norm-noise", 6, 3)
    low, high = row["intervals"]["agreement"]
    assert low <= row["agreement"] <= high
    assert row["maj@3"] is None
    assert not any("@" in key for key in row["intervals"])


def test_eval_tells_how_much_of_an_answer_the_mind_decides(place: Path) -> None:
    """Where minds have several rollouts: much under loud noise, and no more than by chance where all are one mind."""
    given = ("eval", place / "p.jsonl", "--config", place / "c.toml", "--quiet", "--minds", 6, "--extract", "regex:.")
    (single,) = rows_of(ttrl(*given).stdout)
    assert "information" not in single
    several = (*given, "--samples-per-mind", 4)
    (loud,) = rows_of(ttrl(*several, "--set", "population.options.sigma=3.0").stdout)
    (silent,) = rows_of(ttrl(*several, "--set", "population.options.sigma=1e-9").stdout)
    assert loud["information_p"] < 0.02
    assert loud["information"] > loud["information_null"] + 0.2
    assert silent["information_p"] > 0.05


def test_eval_with_gold_measures_accuracy(place: Path) -> None:
    gold = ("--gold", place / "gold.jsonl")
    (row,) = rows_of(ttrl("eval", place / "p.jsonl", "--config", place / "c.toml", "--quiet", *gold).stdout)
    figures = ["avg@3", "label_accuracy", "pass@1", "maj@1", "pass@2", "maj@2", "pass@3", "maj@3"]
    assert all(row["intervals"][key][0] <= row[key] <= row["intervals"][key][1] for key in figures)


def test_eval_of_a_run_measures_the_run(place: Path, trained: tuple[Path, Result]) -> None:
    out, _ = trained
    arguments = ("eval", place / "p.jsonl", "--quiet", "--gold", place / "gold.jsonl")
    newest = rows_of(ttrl(*arguments, "--run", out).stdout)
    assert newest == rows_of(ttrl(*arguments, "--run", out / "checkpoints" / "step_0003").stdout)
    # The run's own final answers came from the same policy, minds and random numbers.
    answers = rows_of(trained[1].stdout)
    assert newest[0]["agreement"] == pytest.approx(sum(row["agreement"] for row in answers) / len(answers))
    assert newest[0]["step"] == STEPS
    (best,) = rows_of(ttrl(*arguments, "--run", out / "best").stdout)
    assert f"step_{best['step']:04}" == (out / "best").resolve().name


def test_compare_puts_the_base_model_beside_the_run(place: Path, trained: tuple[Path, Result]) -> None:
    gold = ("--gold", place / "gold.jsonl")
    base, after, difference = rows_of(
        ttrl("eval", place / "p.jsonl", *gold, "--run", trained[0], "--compare", "--quiet").stdout
    )
    (alone,) = rows_of(ttrl("eval", place / "p.jsonl", *gold, "--config", place / "c.toml", "--quiet").stdout)
    assert base == alone, "the untrained population with the run's sigma is the base"
    assert base["intervals"] != after["intervals"]
    for key in ("agreement", "mean_length", "maj@3"):
        assert difference[key] == pytest.approx(after[key] - base[key])
        assert difference["intervals"][key][0] <= difference[key] <= difference["intervals"][key][1]
    assert sum(difference["labels"].values()) == len(PROBLEMS)


def test_compare_of_an_untrained_run_is_exactly_zero(place: Path, tmp_path: Path) -> None:
    run(place, tmp_path / "run", "--lr", 0, "--quiet")
    base, after, difference = rows_of(
        ttrl("eval", place / "p.jsonl", "--run", tmp_path / "run", "--compare", "--quiet").stdout
    )
    assert {**after, "system": "base", "step": 0} == base
    assert all(value == 0 for value in difference.values() if isinstance(value, float))
    assert all(pair == [0, 0] for pair in difference["intervals"].values())


def test_population_none_is_the_mean_mind_of_a_run_and_the_bare_base_model(
    place: Path, trained: tuple[Path, Result]
) -> None:
    arguments = ("sample", place / "p.jsonl", "--quiet", "--population", "none", "--set", "sampling.temperature=0")
    base = rows_of(ttrl(*arguments, "--config", place / "c.toml").stdout)
    mean = rows_of(ttrl(*arguments, "--run", trained[0]).stdout)
    assert {row["mind"] for row in mean} == {0}
    assert len({row["mind"] for row in base}) == 3
    for rows in (base, mean):
        # Greedy and without noise: all rollouts of a problem are the same.
        assert len({(row["id"], row["text"]) for row in rows}) == len(PROBLEMS)
    (row,) = rows_of(ttrl("eval", place / "p.jsonl", "--quiet", "--population", "none", "--run", trained[0]).stdout)
    assert row["population"] == "none"


def test_a_run_is_measured_only_as_what_it_is(place: Path, trained: tuple[Path, Result], tmp_path: Path) -> None:
    arguments = ("eval", place / "p.jsonl", "--run", trained[0])
    for more, message in (
        (("--model", save_tiny(tmp_path / "another", seed=1)), "is not the one of the run"),
        (("--population", "fakes:Other"), "population.name was 'norm-noise' in training"),
        (("--set", "population.options.sigma=1"), "population.options.sigma was 0.3 in training, cannot become 1"),
        (("--set", "learn.lora.rank=4"), "learn.lora.rank was 2 in training, cannot become 4"),
        (("--config", place / "c.toml"), "--run takes its configuration from the run directory"),
    ):
        assert message in ttrl(*arguments, *more, code=2).stderr


def test_a_run_that_learned_from_gold_is_measured_without_it(place: Path, tmp_path: Path) -> None:
    gold = ("--gold", place / "gold.jsonl")
    run(place, tmp_path / "run", *gold, "--reward", "gold", "--quiet")
    (row,) = rows_of(ttrl("eval", place / "p.jsonl", "--run", tmp_path / "run", "--quiet").stdout)
    assert row["no_signal"] is None, "which groups carry a signal takes the answers that are not there"
    (row,) = rows_of(ttrl("eval", place / "p.jsonl", "--run", tmp_path / "run", *gold, "--quiet").stdout)
    assert row["no_signal"] is not None
    assert rows_of(ttrl("sample", place / "p.jsonl", "--run", tmp_path / "run", "--quiet").stdout)


def test_the_groups_without_a_signal_are_those_under_the_reward_of_the_run(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "payday.py").write_text(
        "def flat(ballot): return (1.0,) * len(ballot.answers_G)\n"
        "def rising(ballot): return tuple(map(float, range(len(ballot.answers_G))))\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    for reward, share in (("flat", 1.0), ("rising", 0.0)):
        out = tmp_path / reward
        run(place, out, "--reward", f"payday:{reward}", "--quiet", "--steps", 1)
        measured = rows_of(ttrl("eval", place / "p.jsonl", "--run", out, "--compare", "--quiet").stdout)
        assert [row["no_signal"] for row in measured[:2]] == [share, share]
