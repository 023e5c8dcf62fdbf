"""`ttrl_pop.train` and `ttrl_pop.open` do what the commands do, to the byte."""

import doctest
import importlib
import inspect
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from cli.commands import GOLD, STEPS, final, rows_of, ttrl
from fakes import PROBLEMS, tiny_network
from typer.testing import Result

import ttrl_pop
from ttrl_pop.cli.display.base import Display
from ttrl_pop.errors import UsageError
from ttrl_pop.export.export import export
from ttrl_pop.sample.hf.backend import HfBackend
from ttrl_pop.store.directory import RunDirectory

ROWS = [{"id": problem.id, "prompt": problem.prompt} for problem in PROBLEMS]
KEPT = ("config.toml", "problems.jsonl", "gold.jsonl", "baseline.jsonl", "answers.jsonl")


def python_run(place: Path, out: Path, problems: Any = None, **more: Any) -> ttrl_pop.Training:
    """The run of `trained`, from Python."""
    problems = place / "p.jsonl" if problems is None else problems
    return ttrl_pop.train(problems, config=place / "c.toml", out=out, gold=GOLD, baseline=True, quiet=True, **more)


@pytest.mark.parametrize("problems", [None, ROWS], ids=["file", "rows"])
def test_a_run_from_python_is_the_commands_to_the_byte(
    problems: Any, place: Path, trained: tuple[Path, Result], tmp_path: Path
) -> None:
    run = python_run(place, tmp_path / "run", problems)
    reports = list(run)
    assert [report.step for report in reports] == [1, 2, 3]
    assert final(run.path) == final(trained[0])
    for name in KEPT:
        assert (run.path / name).read_bytes() == (trained[0] / name).read_bytes()
    assert run.answers == rows_of(trained[1].stdout)
    assert [row["step"] for row in run.metrics] == [1, 2, 3]
    assert run.metrics[0]["vote/agreement"] == reports[0].metrics["vote/agreement"]
    assert run.problems == rows_of(ttrl("problems", trained[0]).stdout)


def test_settings_are_named_as_flags_as_values_or_as_tables(place: Path, tmp_path: Path) -> None:
    run = python_run(
        place,
        tmp_path / "run",
        minds=2,
        steps=1,
        vote={"weight": "mind"},
        population={"options": {"sigma": 0.2}},
        reward="frequency",
    )
    text = (run.path / "config.toml").read_text()
    for line in ("minds = 2", "steps = 1", 'weight = "mind"', "sigma = 0.2", 'reward = "frequency"'):
        assert line in text
    run.close()
    with pytest.raises(UsageError, match="stepz"):
        python_run(place, tmp_path / "other", stepz=1)
    assert not (tmp_path / "other").exists()


def test_nothing_is_trained_before_it_is_asked_for_and_the_first_look_trains(place: Path, tmp_path: Path) -> None:
    run = python_run(place, tmp_path / "run")
    assert not RunDirectory(run.path).metrics.exists()
    for report in run:
        assert report.step == 1
        break
    assert len(run.answers) == len(PROBLEMS)
    assert len(run.metrics) == STEPS


def test_a_run_that_is_left_goes_on_from_python_and_from_the_command(
    place: Path, trained: tuple[Path, Result], tmp_path: Path
) -> None:
    for name, go_on in (
        ("python", lambda path: ttrl_pop.train(resume=path, quiet=True).finish()),
        ("command", lambda path: ttrl("run", "--resume", path, "--quiet")),
    ):
        run = python_run(place, tmp_path / name)
        next(iter(run))
        run.close()
        assert len((run.path / "metrics.jsonl").read_text().splitlines()) == 1
        go_on(run.path)
        assert final(run.path) == final(trained[0])


def test_an_interrupt_saves_what_is_done(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ttrl_pop.run.history import History

    run = python_run(place, tmp_path / "run")
    reports = iter(run)
    next(reports)

    def interrupted(*_: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(History, "after", interrupted)
        with pytest.raises(KeyboardInterrupt):
            next(reports)
    assert [path.name for path in (run.path / "checkpoints").iterdir()] == ["step_0001"]
    assert len(ttrl_pop.train(resume=run.path, quiet=True).answers) == len(PROBLEMS)


def test_the_log_knows_that_the_run_is_from_python_and_how_it_was_left(place: Path, tmp_path: Path) -> None:
    run = python_run(place, tmp_path / "run")
    next(iter(run))
    run.close()
    ttrl_pop.train(resume=run.path, quiet=True).finish()
    rows = rows_of(RunDirectory(run.path).log.read_text())
    told = [row["text"] for row in rows if row["level"] == "info"]
    assert told == ["begins: ttrl_pop.train", "left", "goes on: ttrl_pop.train", "done"]
    assert RunDirectory(run.path).environment.exists()


def test_what_takes_long_before_the_first_step_is_told(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []

    class Told(Display):
        def phase(self, text: str, *_: Any) -> None:
            told.append(text)

    monkeypatch.setattr("ttrl_pop.api.training.open_display", lambda *_: Told())
    run = python_run(place, tmp_path / "run")
    assert told[0].startswith("loading")
    before = len(told)
    next(iter(run))
    run.close()
    assert told[before:]


def test_settings_begin_with_a_preset_and_files_in_their_order(place: Path, tmp_path: Path) -> None:
    (tmp_path / "more.toml").write_text("steps = 7\n")
    run = python_run(place, tmp_path / "run", preset="choice")
    assert 'extract = "choice"' in (run.path / "config.toml").read_text()
    run.close()
    files = [place / "c.toml", tmp_path / "more.toml"]
    run = ttrl_pop.train(place / "p.jsonl", config=files, out=tmp_path / "other", quiet=True)
    assert "steps = 7\n" in (run.path / "config.toml").read_text()
    run.close()


def test_a_run_is_opened_looked_at_and_asked(trained: tuple[Path, Result]) -> None:
    run = ttrl_pop.open(trained[0])
    assert run.answers == rows_of(trained[1].stdout)
    assert run.checkpoint.name == f"step_{STEPS:04d}"
    assert ttrl_pop.open(trained[0] / "best").checkpoint == (trained[0] / "best").resolve()
    tally = run.ask("Q: What is 2 times 3?\nA:", minds=5)
    assert len(tally.group.rollouts_G) == 5
    assert len({rollout.mind for rollout in tally.group.rollouts_G}) == 5
    # The text stands as it is: the run's own problems are raw.
    assert tally.group.problem.prompt == "Q: What is 2 times 3?\nA:"
    again = run.ask("Q: What is 2 times 3?\nA:", minds=5)
    assert again == tally
    # Another checkpoint has other weights.
    earlier = ttrl_pop.open(trained[0] / "checkpoints" / "step_0001").ask("Q: What is 2 times 3?\nA:", minds=5)
    assert earlier.group.rollouts_G[0].logprobs != tally.group.rollouts_G[0].logprobs
    other = run.ask("Q: What is 5 times 5?\nA:", minds=2)
    assert other.group.rollouts_G[0].prompt_ids != tally.group.rollouts_G[0].prompt_ids
    assert repr(run) == f"ttrl_pop.open({str(trained[0])!r})"
    with pytest.raises(UsageError, match="keeps its population"):
        ttrl_pop.open(trained[0], population={"name": "none"})
    with pytest.raises(UsageError, match="neither a run directory"):
        ttrl_pop.open(trained[0].parent)


def test_minds_of_a_run_go_to_a_model_of_somebody_elses(place: Path, copied: Path) -> None:
    model = transformers.AutoModelForCausalLM.from_pretrained(place / "tiny")
    minds, few = ttrl_pop.population(model, sigma=0.1), ttrl_pop.population(model, sigma=0.1, sites="input")
    minds.load(copied / "best")
    assert float(minds.population.sigma0) == pytest.approx(0.3)
    with pytest.raises(UsageError, match="behind the same norms: 5 there, 2 here"):
        few.load(copied / "best")
    config = copied / "config.toml"
    config.write_text(config.read_text().replace('scope = "sequence"', 'scope = "completion"'))
    if "completion" not in config.read_text():
        config.write_text(config.read_text().replace("sigma = 0.3", 'sigma = 0.3\nscope = "completion"'))
    with pytest.raises(UsageError, match="scope must be 'sequence'"):
        minds.load(copied / "best")


def test_a_row_that_a_kill_has_torn_is_left_out(copied: Path) -> None:
    metrics = RunDirectory(copied).metrics
    metrics.write_bytes(metrics.read_bytes()[:-20])
    assert [row["step"] for row in ttrl_pop.open(copied).metrics] == [1, 2]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"population.options.sigma": 9.0}, "keeps its population and its adapter; leave population.options.sigma out"),
        ({"population": {"name": "none"}}, "keeps its population"),
        ({"lr": 1}, "keeps its population and its adapter; leave learn.lr out"),
        ({"steps": 3}, "steps decides nothing of a run that is asked or exported"),
        ({"reward": "gated"}, "vote.reward decides nothing"),
        ({"prompt_key": "x"}, "problems.prompt_key decides nothing"),
        ({"zzz": 3}, "unknown key 'zzz'"),
        ({"vote": {"zzz": 3}}, "unknown key 'vote.zzz'"),
        ({"minds": 0}, "population.minds"),
    ],
)
def test_what_sets_nothing_of_a_trained_run_is_refused_as_it_is_opened(
    settings: dict[str, Any], message: str, trained: tuple[Path, Result]
) -> None:
    with pytest.raises(UsageError, match=message):
        ttrl_pop.open(trained[0], **settings)


def test_a_run_is_asked_as_it_was_opened(trained: tuple[Path, Result]) -> None:
    question = "What is 2 times 3?"
    run = ttrl_pop.open(trained[0])
    assert len(run.ask(question).group.rollouts_G) == 3
    turns = [{"role": "user", "content": question}]
    assert run.ask(turns, minds=1).group.problem.is_chat
    for wrong in (0, -1, True):
        with pytest.raises(UsageError, match=f"minds must be a whole number from 1, got {wrong}"):
            run.ask(question, minds=wrong)
    run.close()
    other = ttrl_pop.open(trained[0], minds=2, raw=False)
    group = other.ask(question).group
    assert len(group.rollouts_G) == 2
    assert group.problem.is_chat


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"mind": "7"}, "mind must be a seed, a whole number from 0 .*, got '7'"),
        ({"mind": -3}, "got -3"),
        ({"mind": 2**63}, f"got {2**63}"),
        ({"form": "zip"}, "form must be one of auto, plain, adapter, code, got 'zip'"),
    ],
)
def test_what_no_export_is_is_refused_at_once(
    wrong: dict[str, Any], message: str, trained: tuple[Path, Result], tmp_path: Path
) -> None:
    run = ttrl_pop.open(trained[0])
    config = run._config(set())
    asked = {"mind": None, "form": "auto", **wrong}
    with pytest.raises(UsageError, match=message):
        # As it is where nothing checks types.
        inspect.unwrap(export)(RunDirectory(run.path), run.checkpoint, config, tmp_path / "out", **asked)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"out": "elsewhere"}, "goes on in the run's own directory; leave out='elsewhere' out"),
        ({"problems": ROWS}, "takes its problems from the run directory; leave the rows out"),
        ({"gold": {"p0": "1"}}, "leave --gold out"),
    ],
)
def test_a_run_that_goes_on_takes_nothing_beside(
    given: dict[str, Any], message: str, trained: tuple[Path, Result]
) -> None:
    with pytest.raises(UsageError, match=message):
        ttrl_pop.train(resume=trained[0], quiet=True, **given)


def test_a_data_frame_is_its_rows(place: Path, tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame([*ROWS[:-1], {**ROWS[-1], "answer": "3"}])
    run = ttrl_pop.train(frame, config=place / "c.toml", out=tmp_path / "run", quiet=True)
    run.close()
    assert [json.loads(line)["id"] for line in (run.path / "problems.jsonl").read_text().splitlines()] == [
        row["id"] for row in ROWS
    ]
    # Only one of the rows has an answer: cells without a value are none.
    assert [json.loads(line) for line in (run.path / "gold.jsonl").read_text().splitlines()] == [
        {"id": ROWS[-1]["id"], "answer": "3"}
    ]


def test_a_run_that_is_closed_lets_go_of_its_engine_and_opens_another(
    trained: tuple[Path, Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    closed: list[HfBackend] = []
    monkeypatch.setattr(HfBackend, "close", lambda engine: closed.append(engine))
    run = ttrl_pop.open(trained[0])
    run.close()
    tallies = []
    for count in (1, 2):
        tallies.append(run.ask("Q: What is 2 times 3?\nA:", minds=2))
        run.close()
        assert len(closed) == count
    assert tallies[0] == tallies[1]


def test_a_question_is_a_turn_where_problems_are(place: Path, tmp_path: Path) -> None:
    rows = [{"id": str(n), "question": f"What is {n} times 7?"} for n in range(2)]
    config = {"raw": False, "steps": 1, "problems_per_step": 2, "answers": False}
    run = ttrl_pop.train(rows, config=place / "c.toml", out=tmp_path / "run", quiet=True, **config)
    asked = run.ask("What is 9 times 7?", minds=2).group.problem
    first = json.loads((run.path / "problems.jsonl").read_text().splitlines()[0])["messages"]
    assert asked.prompt[0]["content"] == first[0]["content"].replace("0 times", "9 times")
    given = [{"role": "user", "content": "Just this."}]
    assert list(run.ask(given, minds=2).group.problem.prompt) == given


def test_a_run_is_exported_from_python(trained: tuple[Path, Result], tmp_path: Path) -> None:
    mind = ttrl_pop.Mind(7)
    done = ttrl_pop.open(trained[0]).export(tmp_path / "out", mind, form="code")
    assert done.mind == 7
    assert done.proof.equal == done.proof.prompts
    assert (done.folder / "README.md").exists()


def test_what_documents_show_is_so(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copy(place / "p.jsonl", tmp_path / "problems.jsonl")
    shutil.copy(place / "c.toml", tmp_path / "settings.toml")
    monkeypatch.chdir(tmp_path)
    prompts = torch.tensor([[5, 6, 7], [5, 6, 7]])
    # In this order: a run is opened that was made before.
    for name in ("vote", "training", "run", "population"):
        module = importlib.import_module(f"ttrl_pop.api.{name}")
        result = doctest.testmod(
            module, extraglobs={"ttrl_pop": ttrl_pop, "model": tiny_network("llama"), "prompts": prompts}
        )
        assert result.attempted > 0
        assert result.failed == 0
