"""`--plan`: as much is planned as is then done, nothing is written, and no weight is read."""

import gc
import io
import json
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest
from cli.commands import on_terminal, rows_of, run, snapshot, ttrl
from fakes import FAMILIES, save_tiny
from rich.console import Console
from typer.testing import Result

from ttrl_pop.cli.plan import plan_table
from ttrl_pop.presets import NAMES
from ttrl_pop.sample.backend import Request, Weights
from ttrl_pop.sample.hf.backend import HfBackend
from ttrl_pop.types import Rollout

SIZES = ("program", "weights", "merged weights", "laid out weights", "adapter, population, optimizer")
SIZES += ("keys and values", "activations", "peak")


class Tallying(HfBackend):
    """An engine that counts what it is asked for: step and purpose → (problem, rollouts)."""

    asked: ClassVar[Counter[tuple[Any, ...]]] = Counter()

    def rollouts(self, requests: Sequence[Request], weights: Weights = "policy") -> Iterator[tuple[int, Rollout]]:
        for request in requests:
            purpose, _, step, problem, *_ = request.stream_key
            self.asked[purpose, step > 0, problem] += 1  # type: ignore[operator]
        return super().rollouts(requests, weights)


SETTINGS: dict[str, list[str]] = {
    "plain": [],
    "baseline, no answers": ["baseline=true", "answers=false"],
    "a step with all": ["problems_per_step=100", "steps=2"],
    "not all are visited": ["problems_per_step=2", "steps=2"],
    "labels of the base model": ["vote.labels=base", "vote.label_rollouts=5"],
    "labels of an average": ["vote.labels=average"],
    "calibrated": ["population.options.sigma=auto", "population.options.target_kl=100"],
    "no noise": ["population.name=none", "population.samples_per_mind=2"],
}


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_as_many_rollouts_are_planned_as_are_written(
    place: Path, tmp_path: Path, settings: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Tallying, "asked", Counter())
    more = [argument for setting in settings for argument in ("--set", setting)]
    planned = rows_of(
        ttrl("run", place / "p.jsonl", "--config", place / "c.toml", *more, "--plan", "--json", "--quiet").stdout
    )
    work = {row["part"]: row for row in planned if row["kind"] == "work"}
    run(place, tmp_path / "run", *more, "--backend", f"{__name__}:Tallying", "--quiet")
    asked = Tallying.asked
    assert work["all"]["rollouts"] == sum(asked.values())
    steps = {key[2]: count for key, count in asked.items() if key[:2] == ("token", True)}
    assert (work["steps"]["rollouts"], work["steps"]["problems"]) == (sum(steps.values()), len(steps))
    labels = sum(count for key, count in asked.items() if key[0] == "label")
    assert sum(row["rollouts"] for part, row in work.items() if part.startswith("labels")) == labels
    assert sum(row["share"] for part, row in work.items() if part != "all") == pytest.approx(1)


def planned(*arguments: object) -> dict[str, dict[str, dict[str, Any]]]:
    """Rows of a plan, by kind and part."""
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for row in rows_of(ttrl(*arguments, "--plan", "--json", "--quiet").stdout):
        found.setdefault(row["kind"], {})[row["part"]] = row
    return found


@pytest.fixture
def weightless(place: Path, tmp_path: Path) -> Path:
    """A copy of the model whose weights cannot be read."""
    copy = Path(shutil.copytree(place / "tiny", tmp_path / "weightless"))
    (copy / "model.safetensors").write_bytes(b"no weights")
    return copy


def test_nothing_is_written_and_no_weight_is_read(
    place: Path, weightless: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    monkeypatch.setenv("TTRL_POP_CACHE", str(work / "cache"))
    monkeypatch.setenv("XDG_STATE_HOME", str(work / "state"))
    work.chmod(0o500)
    for command in ("run", "eval", "sample"):
        before = snapshot(tmp_path)
        found = planned(command, place / "p.jsonl", "--config", place / "c.toml", "--model", weightless)
        assert snapshot(tmp_path) == before
        assert tuple(found["memory"]) == SIZES
        assert found["memory"]["peak"]["bytes"] == sum(found["memory"][size]["bytes"] for size in SIZES[:-1])
        assert ("disk" in found) is (command == "run")
    work.chmod(0o700)


COUNTED = """
import gc, sys
collected = []
gc.callbacks.append(lambda phase, info: collected.append(phase))
class Watch:
    def find_spec(self, name, path=None, target=None):
        if name == "ttrl_pop.plan.forecast":
            self.before = len(collected)
sys.meta_path.insert(0, watch := Watch())
from ttrl_pop.cli import plan
print("torch" in sys.modules)
plan._forecasts()
print(len(collected) - watch.before, gc.isenabled(), gc.get_freeze_count() > 100_000, "torch" in sys.modules)
"""


def test_libraries_are_loaded_once_and_never_looked_through_for_garbage() -> None:
    told = subprocess.run([sys.executable, "-c", COUNTED], capture_output=True, text=True, check=True).stdout
    assert told.split() == ["False", "0", "True", "True", "True"]


def test_what_a_program_holds_already_stays_subject_to_collection(place: Path) -> None:
    before = gc.get_freeze_count()
    planned("run", place / "p.jsonl", "--config", place / "c.toml")
    assert (gc.get_freeze_count(), gc.isenabled()) == (before, True)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_can_be_planned(family: str, place: Path, tmp_path: Path) -> None:
    found = planned(
        *("run", place / "p.jsonl", "--config", place / "c.toml", "--model", save_tiny(tmp_path, family)),
        *("--set", 'learn.lora.targets="all-linear"'),
    )
    assert all(row["seconds"] is not None for row in found["work"].values())
    assert all(found["memory"][part]["bytes"] > 0 for part in ("weights", "keys and values", "activations"))


def test_what_can_not_be_measured_is_said_to_be_unknown(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise ValueError("one layer less\nis none")

    monkeypatch.setattr("ttrl_pop.plan.forecast.thin", refuse)
    result = ttrl("run", place / "p.jsonl", "--config", place / "c.toml", "--plan", "--json")
    rows = rows_of(result.stdout)
    unknown = {row["part"] for row in rows if row["kind"] == "work" and row["seconds"] is None}
    assert unknown == {"steps", "answers", "all"}
    assert "are not known: the model does not take 2 layers (one layer less)" in result.stderr


def test_a_run_and_its_base_model_are_both_asked_where_they_are_compared(
    place: Path, trained: tuple[Path, Result]
) -> None:
    one = planned("eval", place / "p.jsonl", "--run", trained[0])
    both = planned("eval", place / "p.jsonl", "--run", trained[0], "--compare")
    assert [*one["work"]] == ["start", "run", "all"]
    assert [*both["work"]] == ["start", "base", "run", "all"]
    assert both["work"]["all"]["rollouts"] == 2 * one["work"]["all"]["rollouts"] == 2 * 6 * 3
    assert one["memory"]["adapter, population, optimizer"]["bytes"] > 0
    assert [*planned("sample", place / "p.jsonl", "--config", place / "c.toml")["work"]] == ["start", "rollouts", "all"]


def test_the_start_is_what_it_has_taken_so_far_and_each_byte_of_the_weights_once(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ttrl_pop.plan.forecast.time.process_time", lambda: 1000.0)
    monkeypatch.setattr("ttrl_pop.plan.forecast.copying", lambda size: 1.0)
    found = planned("run", place / "p.jsonl", "--config", place / "c.toml")
    weights = sum(found["memory"][part]["bytes"] for part in ("weights", "merged weights", "laid out weights"))
    assert found["work"]["start"]["seconds"] == 1000 + weights
    others = sum(row["seconds"] for part, row in found["work"].items() if part not in ("start", "all"))
    assert found["work"]["all"]["seconds"] == pytest.approx(1000 + weights + others)


def test_a_study_loads_a_model_for_each_run_and_starts_once(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ttrl_pop.plan.forecast.time.process_time", lambda: 1e6)
    monkeypatch.setattr("ttrl_pop.plan.forecast.copying", lambda size: 0.0)
    found = planned("study", "controls", place / "p.jsonl", "--config", place / "c.toml", "--seeds", "2")
    assert all(row["seconds"] < 1e6 for row in found["work"].values())


@pytest.mark.parametrize("name", NAMES)
def test_presets_pass(name: str, place: Path, tmp_path: Path) -> None:
    model = save_tiny(tmp_path)
    settings = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**settings, "max_position_embeddings": 2048}))
    found = planned("run", place / "p.jsonl", "--preset", name, "--model", model)
    assert found["work"]["baseline"]["problems"] == 6
    saved = tmp_path / "saved.toml"
    saved.write_text(ttrl("config", "--preset", name).stdout)
    again = planned("run", place / "p.jsonl", "--config", saved, "--model", model)
    for part, row in found["work"].items():
        assert {**row, "seconds": 0} == {**again["work"][part], "seconds": 0}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--set", "learn.lora.rank=17"], "learn.lora.rank must be at most 16"),
        (["--set", "sampling.max_new_tokens=300"], "; pass less, as in --set sampling.max_new_tokens=128"),
        (["--minds", "1"], "a group needs at least 2 rollouts"),
        (["--reward", "majorty"], "did you mean 'majority'?"),
        (["--set", "population.options.sgma=1"], "did you mean 'sigma'?"),
        (["--out", "."], "--out .: exists and is not empty"),
        (["--out", __file__ + "/run"], "is not a directory"),
        (["--ranks", "-1"], "--ranks must be 1 or more, got -1"),
        (["--track", "bogus"], "track: no tracker 'bogus'"),
        (["--resume", "x"], "--plan looks at a new run; leave --resume out"),
    ],
)
def test_what_a_run_would_refuse_its_plan_refuses(place: Path, arguments: list[str], message: str) -> None:
    refused = ttrl("run", place / "p.jsonl", "--config", place / "c.toml", *arguments, "--plan", code=2)
    assert message in refused.stderr
    assert refused.stdout == ""


def test_a_person_sees_a_table(place: Path, start: Callable[..., Any]) -> None:
    code, shown = on_terminal(start, "run", place / "p.jsonl", "--config", place / "c.toml", "--plan")
    assert code == 0
    lines = re.sub(r"\x1b\[[0-9;]*m", "", shown).splitlines()
    assert next(line for line in lines if line.startswith("steps")).split()[:5] == ["steps", "6", "3", "36", "67%"]
    assert next(line for line in lines if line.startswith("memory: peak")).endswith("MiB")
    assert "completions as long as the limit allows" in shown
    code, shown = on_terminal(start, "run", place / "p.jsonl", "--config", place / "c.toml", "--plan", "--json")
    assert json.loads(shown.splitlines()[0])["kind"] == "work"


LARGE = {"problems": 12_032, "votes": 64, "rollouts": 15_400_960, "share": 0.995}
LARGE |= {"prompt_tokens": 1_848_115_200, "new_tokens": 7_885_291_520, "seconds": 54_218.0}
WORK = [{"kind": "work", "part": part, **LARGE} for part in ("problems held out", "labels (average)", "all")]
PEAK = [{"kind": "memory", "part": "adapter, population, optimizer", "bytes": 3 << 30}]


@pytest.mark.parametrize("width", [40, 60, 80, 100, 200])
def test_no_figure_is_cut_on_a_narrow_terminal(width: int) -> None:
    screen = io.StringIO()
    Console(file=screen, width=width).print(plan_table([*WORK, *PEAK]))
    shown = screen.getvalue()
    assert "…" not in shown
    assert max(map(len, shown.splitlines())) <= width
    figures = ("12 032", "64", "15 400 960", "100%", "1 848 115 200", "7 885 291 520", "15 h 4 min")
    assert [shown.count(figure) for figure in figures] == [3] * len(figures)
    assert "3.0 GiB" in shown


@pytest.mark.parametrize("command", ["run", "eval", "sample", "study", "demo"])
def test_rows_of_a_plan_are_not_asked_for_where_there_is_none(command: str, tmp_path: Path) -> None:
    """Passed over, a long run would start."""
    given = [] if command == "demo" else [tmp_path / "p.jsonl"]
    assert "--json is how --plan is printed" in ttrl(command, *given, "--json", code=2).stderr
