"""The fit of latent minds: what it learns from, what it keeps, and that it is the same each time."""

import json
import math
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from fakes import FAMILIES, PROBLEMS, tiny_model, tiny_session

from ttrl_pop.errors import DamagedError, UsageError
from ttrl_pop.fit import latent as latent_fit
from ttrl_pop.fit import lower_half
from ttrl_pop.fit.codes import Codes, CompletionEncoder
from ttrl_pop.fit.completions import numbered, readings
from ttrl_pop.fit.kept import FIGURES, TENSORS, keep, load_kept
from ttrl_pop.fit.latent import LatentFigures, fit_latent
from ttrl_pop.fit.lower_half import LowerHalf
from ttrl_pop.fit.prepare import fit_codes, prepare, shortfall, told
from ttrl_pop.latent.codes import kl_to_uniform
from ttrl_pop.model.forward import recompute_layers
from ttrl_pop.model.logprobs import token_logprobs
from ttrl_pop.model.policy import Policy
from ttrl_pop.population.latent import Latent
from ttrl_pop.population.options import LatentOptions
from ttrl_pop.run.session import Session
from ttrl_pop.types import Group


def session_of(gold: dict[str, str] | None = None, **options: Any) -> Session:
    chosen = {"bits": 3, "steps": 4, "rollouts": 4, "encoder_width": 16, "least_gap": 0.0} | options
    policy = Policy(tiny_model(), Latent(LatentOptions(**chosen)), None)
    return tiny_session(policy, gold=gold)


def latent_of(session: Session) -> Latent:
    population = session.policy.population
    assert isinstance(population, Latent)
    return population


def fitted(session: Session) -> LatentFigures:
    return fit_codes(session, latent_of(session), lambda text, rollouts: None)


def groups_of(session: Session, samples: int = 4) -> list[Group]:
    return [*session.sample(session.problems, [None], samples, 0, "fit", weights="base")]


@pytest.mark.parametrize("level", ["sequence", "token"])
def test_a_fit_is_the_same_each_time_and_gold_answers_do_not_enter_it(level: str) -> None:
    sessions = [session_of(gold, level=level) for gold in (None, None, {p.id: "1" for p in PROBLEMS})]
    figures = [fitted(session) for session in sessions]
    first = latent_of(sessions[0])
    assert figures[0] == figures[1] == figures[2]
    assert first.directions.abs().max() > 0
    assert torch.equal(first.directions, first.directions0)
    for other in sessions[1:]:
        assert torch.equal(latent_of(other).directions, first.directions)
    other = session_of(level=level)
    other = replace(other, config=other.config.model_copy(update={"seed": 7}))
    fitted(other)
    assert not torch.equal(latent_of(other).directions, first.directions)


def test_problems_held_out_do_not_enter_a_fit() -> None:
    alone, beside = (replace(session_of(), problems=PROBLEMS[:4]) for _ in range(2))
    beside = replace(beside, held=replace(beside, problems=PROBLEMS[4:]))
    assert fitted(alone) == fitted(beside)
    assert torch.equal(latent_of(alone).directions, latent_of(beside).directions)


def test_a_fit_does_not_depend_on_how_many_completions_a_forward_holds() -> None:
    one, other = session_of(), session_of()
    groups = groups_of(one)
    few, many = (fit_latent(s.policy, groups, 1.0, tokens, 0) for s, tokens in ((one, 150), (other, 10_000)))
    torch.testing.assert_close(latent_of(one).directions, latent_of(other).directions, rtol=0, atol=1e-9)
    assert asdict(few) == pytest.approx(asdict(many), abs=1e-9)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("room", [1.0, 0.0, 0.4], ids=["all", "nothing", "a part"])
def test_a_fit_is_the_same_whatever_is_kept_of_the_lower_half(
    family: str, room: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = LatentOptions(bits=3, steps=4, rollouts=4, encoder_width=16, least_gap=0.0)
    session, plain = (tiny_session(Policy(tiny_model(family), Latent(options), None)) for _ in range(2))
    groups = groups_of(session)
    size = sum(len(r.prompt_ids) + len(r.completion_ids) for group in groups for r in group.rollouts_G) * 16 * 8
    monkeypatch.setattr(lower_half, "limit_bytes", lambda device: room * size / lower_half.SHARE)
    ran: list[int] = []
    norm = next(m for m in latent_of(session).below[0].modules() if "norm" in type(m).__name__.lower())
    norm.register_forward_hook(lambda *_: ran.append(1))
    kept = fit_latent(session.policy, groups, 1.0, 10_000, 0)
    monkeypatch.setattr(lower_half, "limit_bytes", lambda device: 0)
    assert asdict(kept) == pytest.approx(asdict(fit_latent(plain.policy, groups, 1.0, 10_000, 0)), abs=1e-9)
    torch.testing.assert_close(latent_of(session).directions, latent_of(plain).directions, rtol=0, atol=1e-9)
    # Once for what is learned from and once for what is held out; else at every step, and at every look for each draw.
    assert len(ran) == 2 if room == 1 else len(ran) > 6


def test_lower_layers_whose_keys_upper_ones_read_are_never_passed_over() -> None:
    session = session_of()
    assert LowerHalf(session.policy, latent_of(session)).room > 0
    session.policy.network.config.num_kv_shared_layers = 1
    assert LowerHalf(session.policy, latent_of(session)).room == 0


def test_layers_that_are_computed_again_give_the_same_fit() -> None:
    plain, again = session_of(steps=2), session_of(steps=2)
    recompute_layers(again.policy.network)
    wrapped = [vars(layer).get("forward") for layer in latent_of(again).below]
    assert asdict(fitted(plain)) == pytest.approx(asdict(fitted(again)), abs=1e-9)
    torch.testing.assert_close(latent_of(plain).directions, latent_of(again).directions, rtol=0, atol=1e-9)
    assert [vars(layer).get("forward") for layer in latent_of(again).below] == wrapped


@pytest.mark.parametrize("untold", [0.0, 0.125, 0.75])
def test_a_share_of_the_completions_is_read_under_the_prior(untold: float, monkeypatch: pytest.MonkeyPatch) -> None:
    own, shares = latent_fit.Codes, []

    def noted(reading: Any, encoder: Any, *given: Any, untold: Any = ()) -> Any:
        if given[2] == "fit-bits":
            shares.append((len(untold), len(reading.completions_B)))
        return own(reading, encoder, *given, untold=untold)

    monkeypatch.setattr(latent_fit, "Codes", noted)
    fitted(session_of(untold=untold, steps=40))
    told, all_of = (sum(counts) for counts in zip(*shares, strict=True))
    assert all_of > 300
    # Five standard errors.
    assert abs(told / all_of - untold) <= 5 * (untold * (1 - untold) / all_of) ** 0.5


def test_the_model_is_left_as_it_was() -> None:
    session = session_of()
    before = {name: p.clone() for name, p in session.policy.network.named_parameters()}
    fitted(session)
    assert all(torch.equal(p, before[name]) for name, p in session.policy.network.named_parameters())
    assert latent_of(session).directions.grad is None


def test_figures_are_those_of_the_models_own_completions() -> None:
    session = session_of()
    groups = groups_of(session)
    figures = fit_latent(session.policy, groups, 1.0, 10_000, 0)
    # One of six problems is held out: its bits are among those of the groups.
    each = [-sum(sum(r.logprobs) for r in group.rollouts_G) / len(group.rollouts_G) / math.log(2) for group in groups]
    assert any(figures.base_bits == pytest.approx(bits, abs=1e-9) for bits in each)
    assert figures.gap_bits == pytest.approx(figures.prior_bits - figures.posterior_bits, abs=1e-9)
    assert figures.bound_bits == pytest.approx(figures.posterior_bits + figures.kl_bits, abs=1e-9)


def test_codes_of_no_size_predict_as_the_base_model_does() -> None:
    session = session_of()
    population, groups = latent_of(session), groups_of(session)
    (reading,) = readings(numbered(groups), 10_000, session.policy.device)
    rollouts = [each.rollout for each in reading.completions_B]
    with torch.no_grad(), population.encoding(lambda states_ND: states_ND.new_zeros(len(states_ND), 3)):
        hidden_KD = session.policy.hidden(reading.packed)[reading.sources_K]
        logits = torch.log_softmax(session.policy.logits(hidden_KD), -1)
        found = logits.gather(1, reading.targets_K[:, None])[:, 0]
        expected, mask = token_logprobs(session.policy, rollouts, None, 1.0)
    torch.testing.assert_close(found, expected[mask], rtol=0, atol=1e-12)


@pytest.mark.parametrize("level", ["sequence", "token"])
def test_the_code_of_a_completion_does_not_depend_on_what_lies_beside_it(level: str) -> None:
    session = session_of(level=level)
    problems = numbered(groups_of(session))
    torch.manual_seed(0)
    encoder = CompletionEncoder(16, 16, 3).double()
    states = torch.randn(2000, 16, dtype=torch.float64)

    def read(chosen: Any) -> dict[int, list[torch.Tensor]]:
        (reading,) = readings(chosen, 10**6, session.policy.device)
        # Hidden states keyed by completion and place, wherever the token lies.
        states_ND = torch.zeros(len(reading.owner_N), 16, dtype=torch.float64)
        for each, tokens in zip(reading.completions_B, reading.tokens_B, strict=True):
            for place, token in enumerate(tokens):
                states_ND[token] = states[each.number * 37 + place]
        codes = Codes(reading, encoder, level, 3, "test", 0)  # type: ignore[arg-type]
        signs = codes.signs(states_ND)
        return {
            each.number: [signs[list(tokens)]]
            for each, tokens in zip(reading.completions_B, reading.tokens_B, strict=True)
        }

    together, alone = read(problems), read(problems[2:3])
    for number, rows in alone.items():
        torch.testing.assert_close(together[number][0], rows[0], rtol=0, atol=1e-12)
    if level == "sequence":
        assert all((rows[0] == rows[0][0]).all() for rows in together.values())


@pytest.mark.parametrize("level", ["sequence", "token"])
def test_completions_that_are_not_told_are_read_under_codes_of_the_prior(level: Any) -> None:
    session = session_of(level=level)
    (reading,) = readings(numbered(groups_of(session)), 10**6, session.policy.device)
    torch.manual_seed(0)
    encoder = CompletionEncoder(16, 16, 3).double()
    states = 3 * torch.randn(len(reading.owner_N), 16, dtype=torch.float64, requires_grad=True)

    def signs(by: CompletionEncoder | None, untold: set[int]) -> torch.Tensor:
        return Codes(reading, by, level, 3, "test", 0, untold=untold).signs(states)

    all_told, none_told, some = signs(encoder, set()), signs(None, set()), signs(encoder, {0, 5})
    owners = reading.owner_N.tolist()
    untold = torch.tensor([reading.completions_B[owner].number in (0, 5) for owner in owners])
    assert 0 < untold.sum() < len(untold)
    assert torch.equal(some[untold], none_told[untold])
    assert torch.equal(some[~untold], all_told[~untold])
    assert not torch.equal(none_told[untold], all_told[untold])


def test_codes_are_balanced_over_the_completions_of_each_problem() -> None:
    session = session_of()
    (reading,) = readings(numbered(groups_of(session)), 10**6, session.policy.device)
    torch.manual_seed(0)
    codes = Codes(reading, CompletionEncoder(16, 16, 3).double(), "sequence", 3, "test", 0)
    codes.signs(torch.randn(len(reading.owner_N), 16, dtype=torch.float64) * 3)
    assert codes.logits_CH is not None
    for part in torch.sigmoid(codes.logits_CH).split([*reading.parts]):
        torch.testing.assert_close(part.mean(0), torch.full((3,), 0.5).double(), rtol=0, atol=1e-6)
    torch.testing.assert_close(codes.kl_CH(), kl_to_uniform(codes.logits_CH), rtol=0, atol=0)
    assert codes.kl_CH().max() > 1e-3


def test_too_few_problems_and_a_gap_that_is_too_small_are_refused() -> None:
    alone = session_of()
    alone = replace(alone, problems=alone.problems[:1])
    with pytest.raises(UsageError, match="at least 2 that the model answers, got 1"):
        fitted(alone)
    with pytest.raises(UsageError, match="no code steers this model"):
        prepare(session_of(least_gap=100.0), lambda line: None)


def test_a_fit_whose_codes_spoil_the_model_says_so_however_large_its_gap() -> None:
    """Codes drawn by chance spoil most then, and that alone makes a gap."""
    spoilt = LatentFigures(
        kappa=3.4,
        gap_bits=5.1,
        kl_bits=2.5,
        live_bits=8,
        base_bits=8.2,
        prior_bits=14.1,
        posterior_bits=9.0,
        bound_bits=11.5,
        tokens=4.0,
        step=138,
    )
    better = replace(spoilt, posterior_bits=7.4)
    assert "minds may write worse than the base model" in told(spoilt, 8)
    assert "worse" not in told(better, 8)
    assert "no code steers" in str(shortfall(replace(better, gap_bits=0.05), 0.1))
    assert shortfall(better, 0.1) is None
    assert shortfall(replace(better, gap_bits=-0.1), 0.0) is None


def test_prepare_fits_and_tells_it_in_a_line(tmp_path: Path) -> None:
    session, lines, phases = session_of(), [], []
    found = prepare(session, lines.append, lambda text, rollouts: phases.append((text, rollouts)), tmp_path / "fit")
    assert found["gap_bits"] == session.policy.population.metrics()["population/gap_bits"]
    assert len(lines) == 1
    assert lines[0].startswith("codes decide ")
    assert phases[0] == ("fitting codes: the base model answers", 4 * len(PROBLEMS))
    assert phases[1:] == [(f"fitting codes: step {step} of 4", 0) for step in range(1, 5)]
    again = session_of()
    assert prepare(again, lambda line: None, lambda text, rollouts: pytest.fail(text), tmp_path / "fit") == found
    assert torch.equal(latent_of(again).directions, latent_of(session).directions)


def test_a_kept_fit_is_taken_whole_or_made_again_to_the_byte(tmp_path: Path) -> None:
    first, folder = session_of(), tmp_path / "fit"
    prepare(first, lambda line: None, kept=folder)
    whole = {name: (folder / name).read_bytes() for name in (TENSORS, FIGURES)}
    for damage in (
        lambda: (folder / FIGURES).unlink(),
        lambda: (folder / FIGURES).write_text("{}"),
        lambda: (folder / TENSORS).write_bytes(whole[TENSORS][:-1]),
        lambda: (folder / TENSORS).write_bytes(whole[TENSORS][:-1] + bytes([whole[TENSORS][-1] ^ 1])),
        lambda: (folder / TENSORS).unlink(),
    ):
        damage()
        told: list[str] = []
        prepare(session_of(), told.append, kept=folder)
        assert told[0].endswith("it is fitted again")
        assert {name: (folder / name).read_bytes() for name in whole} == whole


def test_a_named_fit_of_another_model_or_other_codes_is_refused(tmp_path: Path) -> None:
    session, folder = session_of(), tmp_path / "fit"
    keep(folder, latent_of(session), "a model", fitted(session))
    assert load_kept(folder, latent_of(session_of()), "a model").kappa > 0
    with pytest.raises(UsageError, match="model 'a model', this is 'another'"):
        load_kept(folder, latent_of(session_of()), "another")
    with pytest.raises(UsageError, match="3 bits"):
        load_kept(folder, latent_of(session_of(bits=4)), "a model")
    with pytest.raises(UsageError, match="level 'sequence', this is 'token'"):
        load_kept(folder, latent_of(session_of(level="token")), "a model")
    row = json.loads((folder / FIGURES).read_text())
    (folder / FIGURES).write_text(json.dumps({key: value for key, value in row.items() if key != "enters"}))
    with pytest.raises(UsageError, match="enters None, this is 'stream, end'; fit it again"):
        load_kept(folder, latent_of(session_of()), "a model")
    (folder / FIGURES).write_text(json.dumps(row | {"kappa": "much"}))
    with pytest.raises(DamagedError, match="numbers only"):
        load_kept(folder, latent_of(session_of()), "a model")
    with pytest.raises(DamagedError, match="is not there"):
        prepare(session_of(fitted=str(tmp_path / "none")), lambda line: None)


def test_training_begins_from_the_fit_and_restart_goes_back_to_it() -> None:
    session = session_of()
    prepare(session, lambda line: None)
    population = latent_of(session)
    start = population.directions.detach().clone()
    with torch.no_grad():
        population.directions.add_(1.0)
    again = session_of()
    again.policy.population.load_state_dict(population.state_dict())
    again.policy.population.restart()
    assert torch.equal(latent_of(again).directions, start)
    assert again.policy.population.lacks is None
