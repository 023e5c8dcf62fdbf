"""A run → one mind of it as a folder that transformers opens: written, opened again, compared with the run, kept."""

import json
import math
import os
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, get_args, runtime_checkable

import torch

from ttrl_pop.config import Config, ProblemsConfig
from ttrl_pop.errors import UsageError
from ttrl_pop.export import adapter, card, code, plain
from ttrl_pop.export.card import Card
from ttrl_pop.export.proof import Proof, compare, evidence
from ttrl_pop.export.trained import Lora, NoFormError, Offsets, lora_of, offsets_of
from ttrl_pop.model.load import LoadedModel, load_model
from ttrl_pop.model.minded import take_offsets
from ttrl_pop.model.prompts import encode
from ttrl_pop.model.source import DEMO_MODEL, EXPORT, lasting
from ttrl_pop.population.base import MEAN
from ttrl_pop.read.problems import read_problems
from ttrl_pop.store import checkpoint, identity
from ttrl_pop.store.directory import RunDirectory
from ttrl_pop.store.identity import PROBLEMS
from ttrl_pop.store.trained import trained_policy
from ttrl_pop.types import Mind, Problem

Form = Literal["auto", "plain", "adapter", "code"]


@runtime_checkable
class Writer(Protocol):
    """What a module of a form offers."""

    LOADING: str

    def check(self, network: Any, offsets: Offsets) -> None: ...
    def write(self, network: Any, lora: Lora | None, offsets: Offsets, folder: Path) -> None: ...
    def reopen(self, folder: Path, dtype: torch.dtype) -> Any: ...


FORMS: dict[str, Writer] = {"plain": plain, "adapter": adapter, "code": code}
"""In the order in which `auto` tries them: what most tools open comes first."""


@dataclass(frozen=True, slots=True)
class Exported:
    """A folder that has been proven."""

    folder: Path
    form: str
    mind: int | None
    """Seed; None is the mean mind."""
    step: int
    proof: Proof

    def row(self) -> dict[str, Any]:
        """What is kept of it beside the folder's weights, and printed."""
        return {"form": self.form, "mind": self.mind, "step": self.step, **asdict(self.proof)}


def export(
    run: RunDirectory,
    folder: Path,
    config: Config,
    out: Path,
    mind: int | None = None,
    form: Form = "auto",
    notice: Callable[[str], None] = lambda text: None,
) -> Exported:
    """Write one mind of a checkpoint to `out`.

    Args:
        folder: of the checkpoint.
        config: of the run.
        out: must not exist, or be empty.
        mind: its seed; None is the mean mind.
        notice: is told in a line why `auto` passes a form over.

    Raises:
        UsageError: `out` is taken, the run's minds cannot be exported, or not in this form.
        ProofError: the folder opened as another model; it has been removed.
    """
    if form not in get_args(Form):
        raise UsageError(f"form must be one of {', '.join(get_args(Form))}, got {form!r}")
    if not (mind is None or (type(mind) is int and 0 <= mind < 2**63)):
        raise UsageError(f"mind must be a seed, a whole number from 0 as rollouts name it, got {mind!r}")
    check_free(out)
    known = identity.load(run)
    identity.check(run, known, PROBLEMS)
    problems = read_problems(str(run.problems), ProblemsConfig()).problems
    chosen = Mind(mind) if mind is not None else MEAN
    policy = trained_policy(run, folder, config, known)
    model = policy.model
    offsets: Offsets = offsets_of(policy.population, chosen)
    lora = lora_of(policy, config.learn.lora)
    found = evidence(policy, chosen, _prompts(model, problems, config))
    sigma = policy.population.metrics().get("population/sigma")
    tokenizer = model.tokenizer
    # What the run computes with has its own layers and hooks; the folder is made from the model as it was read.
    del policy, model
    network = load_model(config.model, "auto", config.dtype).network
    offsets = _sum(take_offsets(network), offsets)
    name = _choose(form, network, offsets, notice)
    step = checkpoint.load_state(folder)["step"]
    out = Path(os.path.realpath(out))
    # In a folder that is there already, which may be a disk of its own.
    work = (out if out.is_dir() else out.parent) / f".{out.name}.{os.getpid()}.exporting"
    work.mkdir(parents=True)
    try:
        FORMS[name].write(network, lora, offsets, work)
        tokenizer.save_pretrained(work)
        dtype = network.dtype
        del network
        proof = compare(FORMS[name].reopen(work, dtype).eval(), found)
        done = Exported(out, name, mind, step, proof)
        (work / EXPORT).write_text(json.dumps(done.row(), indent=1) + "\n")
        told = Card(
            base=_base_name(config.model),
            base_id=_base_id(config.model),
            form=name,
            loading=FORMS[name].LOADING,
            mind=mind,
            step=step,
            sigma=sigma if sigma is not None and math.isfinite(sigma) else None,
            figures=card.measured(
                run, config.seed, last=step == checkpoint.answering_step(run, checkpoint.latest(run))
            ),
            problems=problems,
            fingerprint=known.problems,
            proof=proof.said(),
        )
        card.write(told, work)
        if out.is_dir():
            # What says that it is an export comes last.
            for file in sorted(work.iterdir(), key=lambda file: file.name == EXPORT):
                file.rename(out / file.name)
        else:
            work.rename(out)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return done


def check_free(out: Path) -> None:
    """Check that a folder can be made.

    Raises:
        UsageError: something stands in its place.
    """
    if os.path.lexists(out) and not (out.is_dir() and not any(out.iterdir())):
        raise UsageError(f"--out {out}: exists and is not empty; pass another --out")


def _prompts(model: LoadedModel, problems: tuple[Problem, ...], config: Config) -> list[tuple[int, ...]]:
    return [encode(model.tokenizer, problem, config.problems.date) for problem in problems]


def _sum(a: Offsets, b: Offsets) -> Offsets:
    """What two minds in a row add behind each norm."""
    both = {**a, **b}
    for site in a.keys() & b.keys():
        both[site] = a[site].cpu() + b[site]
    return both


def _choose(form: Form, network: Any, offsets: Offsets, notice: Callable[[str], None]) -> str:
    """The form that is asked for, or the first that holds the mind exactly.

    Raises:
        NoFormError: none does.
    """
    if form != "auto":
        FORMS[form].check(network, offsets)
        return form
    *tries, last = FORMS
    for name in tries:
        try:
            FORMS[name].check(network, offsets)
        except NoFormError as error:
            notice(str(error))
        else:
            return name
    FORMS[last].check(network, offsets)
    return last


def _base_id(model: str) -> str | None:
    """The hub's name of the base model; None where it was read from a file or a folder."""
    return None if model == DEMO_MODEL or os.path.exists(lasting(model)) else model


def _base_name(model: str) -> str:
    """What the base model is called, without the path to it on this machine."""
    return "SmolLM2-135M-Instruct" if model == DEMO_MODEL else _base_id(model) or Path(model).name
