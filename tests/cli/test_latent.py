"""Commands with latent minds: fitted before step 1, replayed, resumed, compared and exported."""

import json
from pathlib import Path

import pytest
from cli.commands import final, rows_of, ttrl
from fakes import PROBLEMS

from ttrl_pop.fit.latent import _Fitting
from ttrl_pop.store import files
from ttrl_pop.store.directory import RunDirectory

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("elsewhere")]

OPTIONS = "bits = 4\nrollouts = 4\nsteps = 12\nencoder_width = 16\nleast_gap = 0.0\n"


@pytest.fixture
def config(place: Path, tmp_path: Path) -> Path:
    """The configuration of the place, with latent minds."""
    text = (place / "c.toml").read_text()
    assert "sigma = 0.3\nfinal_mu = true\n" in text
    text = text.replace("sigma = 0.3\nfinal_mu = true\n", OPTIONS).replace(
        "[population]\n", '[population]\nname = "latent"\n'
    )
    path = tmp_path / "latent.toml"
    path.write_text(text)
    return path


def test_a_run_fits_replays_and_goes_on_to_the_byte(
    place: Path, config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = ("run", place / "p.jsonl", "--config", config)
    whole = tmp_path / "whole"
    told = ttrl(*given, "--out", whole).stderr
    assert "codes decide" in told
    rows = list(files.read_lines(RunDirectory(whole).metrics))
    figures = json.loads((whole / "fit" / "fit.json").read_text())
    assert all(row["population/gap_bits"] == pytest.approx(figures["gap_bits"], rel=1e-6) for row in rows)
    # A step of which no group teaches replays nothing, and no other has none.
    taught = [row for row in rows if row["learn/groups_used"]]
    assert taught
    assert [row for row in rows if row["learn/logprob_gap"] is not None] == taught
    assert all(row["learn/logprob_gap"] <= 1e-5 for row in taught)
    assert len({row["population/reach"] for row in rows}) > 1, "what codes add is learned"
    # Killed inside the fit, then after a step.
    parts = tmp_path / "parts"
    with monkeypatch.context() as patch:
        patch.setattr(_Fitting, "judge", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        ttrl(*given, "--out", parts, "--quiet", code=130)
    assert not (parts / "fit").exists()
    stopped = RunDirectory(parts)
    config_text = stopped.config.read_text()
    assert "steps = 3" in config_text
    ttrl("run", "--resume", parts, "--quiet", "--set", "steps=1")
    ttrl("run", "--resume", parts, "--quiet", "--set", "steps=3")
    assert final(parts) == final(whole)
    assert (parts / "fit" / "latent.safetensors").read_bytes() == (whole / "fit" / "latent.safetensors").read_bytes()
    base, trained, _ = rows_of(ttrl("eval", place / "p.jsonl", "--run", whole, "--compare", "--quiet").stdout)
    assert base["population"] == trained["population"] == "latent"
    sampled = rows_of(ttrl("sample", place / "p.jsonl", "--run", whole, "--minds", 4, "--quiet").stdout)
    assert len({row["mind"] for row in sampled}) == 4
    # The mean mind is the base model with the adapter; another one is no model folder.
    ttrl("export", whole, "-o", tmp_path / "model", "--quiet")
    refused = ttrl("export", whole, "--mind", 1, "-o", tmp_path / "mind", code=2).stderr
    assert "a mind of latent adds to what layers read" in refused


def test_a_fit_serves_other_runs(place: Path, config: Path, tmp_path: Path) -> None:
    folder = tmp_path / "fit"
    given = (place / "p.jsonl", "--config", config, "--quiet")
    (row,) = rows_of(ttrl("fit", *given, "--out", folder).stdout)
    assert row["fitted"] == str(folder)
    assert "is not empty" in ttrl("fit", *given, "--out", folder, code=2).stderr
    named = ("--set", f"population.options.fitted={json.dumps(str(folder))}")
    one, other = (
        rows_of(ttrl("sample", *given, "--set", "population.samples_per_mind=2", *more).stdout) for more in (named, ())
    )
    assert one == other, "the fit of a command is that of ttrl-pop fit"
    assert len(one) == 6 * len(PROBLEMS)
    plan = ttrl("sample", *given, "--plan", "--json")
    assert plan.stdout
