"""The model card of an export: what the folder is, how to load it, what it was trained on, how near the run it is."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from ttrl_pop.errors import DamagedError
from ttrl_pop.report.estimators import bootstrap_interval, mean
from ttrl_pop.store import files, identity
from ttrl_pop.store.directory import RunDirectory
from ttrl_pop.text import shown
from ttrl_pop.types import Problem

FIGURES = {"agreement": "agreement", "accuracy": "rollout accuracy", "correct": "majority accuracy"}
"""Keys of a row of answers, and what they are called."""

LISTED = 200
"""Problems that the card lists."""

LONGEST = 160
"""Characters of each."""

PAPERS = {
    "B-Trans (minds: an offset behind every norm)": "2512.25063",
    "TTRL (the majority's answer as the label)": "2504.16084",
    "GRPO (the update)": "2402.03300",
}


@dataclass(frozen=True, slots=True)
class Card:
    """What a card is written from."""

    base: str
    base_id: str | None
    """Name of the base model on the hub, where it has one."""
    form: str
    loading: str
    """The call that opens the folder, with FOLDER for its path."""
    mind: int | None
    """Seed of the mind; None is the mean mind."""
    step: int
    sigma: float | None
    figures: Mapping[str, Mapping[str, tuple[float, float, float]]]
    """Stage of the run → figure → mean and 95 % interval over problems."""
    problems: Sequence[Problem]
    fingerprint: str
    proof: str


def measured(run: RunDirectory, seed: int, last: bool) -> dict[str, dict[str, tuple[float, float, float]]]:
    """Figures of the population before training and, where `last`, after it; those of damaged files are left out."""
    known = identity.load(run)
    stages = {"before training": run.baseline, **({"after training": run.answers} if last else {})}
    found: dict[str, dict[str, tuple[float, float, float]]] = {}
    for stage, path in stages.items():
        if path.name not in known.files or identity.flaw(run, known, path.name):
            continue
        try:
            rows = list(files.read_lines(path))
        except DamagedError:
            continue
        for key, name in FIGURES.items():
            values = [float(row[key]) for row in rows if row.get(key) is not None]
            average, interval = mean(values), bootstrap_interval(values, seed)
            if average is not None and interval is not None:
                found.setdefault(stage, {})[name] = average, *interval
    return found


def write(card: Card, folder: Path) -> None:
    """Write README.md of the folder."""
    ModelCard(f"---\n{_data(card, folder.name).to_yaml()}\n---\n\n{_text(card)}").save(folder / "README.md")


def _data(card: Card, name: str) -> ModelCardData:
    results = [
        EvalResult(
            task_type="text-generation",
            dataset_type="ttrl-pop",
            dataset_name=f"the {len(card.problems)} problems that it was trained on",
            metric_type=figure.replace(" ", "-"),
            metric_value=round(values[0], 4),
            metric_name=f"{figure} of the population, {stage}",
        )
        for stage, row in card.figures.items()
        for figure, values in row.items()
    ]
    return ModelCardData(
        base_model=card.base_id,
        library_name="peft" if card.form == "adapter" else "transformers",
        pipeline_tag="text-generation",
        tags=["ttrl-pop", "test-time-training", "grpo"],
        model_name="ttrl-pop export",
        eval_results=results or None,
    )


def _text(card: Card) -> str:
    who = "The mean mind" if card.mind is None else f"Mind {card.mind}"
    sigma = "" if card.sigma is None else f" Spread of the minds: sigma = {card.sigma:.4g}."
    papers = "\n".join(f"- {name}: arXiv [{number}](https://arxiv.org/abs/{number})" for name, number in PAPERS.items())
    return f"""\
# {who} of a population trained from `{shown(card.base, 200)}`

{who} after {card.step} steps of test-time training without labels by ttrl-pop.{sigma}

**Trained on the very problems below.** What it answers to them says nothing of problems that it has not seen.

## Load

{_loading(card)}

## Method

{papers}

## Measures

{_table(card)}

## Proof

The folder was opened again and compared with the run: {card.proof}.

## Problems

Fingerprint (SHA-256 over ids and prompts): `{card.fingerprint}`

{_listed(card.problems)}
"""


def _loading(card: Card) -> str:
    call = card.loading.replace("FOLDER", '"PATH_OR_NAME"')
    module = "peft" if card.form == "adapter" else "transformers"
    kind, _, rest = call.removeprefix("peft.").partition(".")
    notes = {
        "adapter": "The biases of the adapter hold the mind. peft cannot merge them where layers have no bias, and "
        "vLLM does not read them.",
        "code": "The model class is in `modeling_minds.py`, which is short. Without `trust_remote_code` the folder "
        "does not open.",
    }
    note = f"\n\n{notes[card.form]}" if card.form in notes else ""
    return f"```python\nfrom {module} import {kind}\n\nmodel = {kind}.{rest}\n```{note}"


def _table(card: Card) -> str:
    if not card.figures:
        return "None were taken."
    names = [name for name in FIGURES.values() if any(name in row for row in card.figures.values())]
    lines = [f"| {' | '.join(['', *card.figures])} |", "|---" * (1 + len(card.figures)) + "|"]
    for name in names:
        cells = [_cell(row.get(name)) for row in card.figures.values()]
        lines.append(f"| {' | '.join([name, *cells])} |")
    return "\n".join(lines) + "\n\nOf the whole population on its own problems, with 95 % intervals over problems."


def _cell(values: Sequence[float] | None) -> str:
    return "" if values is None else f"{values[0]:.3f} ({values[1]:.3f} to {values[2]:.3f})"


def _listed(problems: Sequence[Problem]) -> str:
    """The problems as an indented block: nothing in it is taken for Markdown or HTML."""
    lines = [f"    {shown(problem.id)}: {shown(_asked(problem), LONGEST)}" for problem in problems[:LISTED]]
    more = len(problems) - LISTED
    return "\n".join(lines) + (f"\n\nand {more} more." if more > 0 else "")


def _asked(problem: Problem) -> str:
    prompt: Any = problem.prompt
    return prompt if isinstance(prompt, str) else " ".join(turn["content"] for turn in prompt)
