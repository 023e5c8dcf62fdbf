"""A fit of latent minds as a folder, whole or not there: `latent.safetensors` and `fit.json`."""

import json
from dataclasses import asdict, fields
from pathlib import Path

import safetensors.torch
from safetensors import SafetensorError

from ttrl_pop.errors import DamagedError, UsageError
from ttrl_pop.fit.latent import LatentFigures
from ttrl_pop.population.latent import Latent
from ttrl_pop.store import reading
from ttrl_pop.store.files import write_atomic

TENSORS, FIGURES = "latent.safetensors", "fit.json"

LARGEST = 2**27
"""Bytes that the tensors of a fit can have: 16 bits of a million numbers at two places."""
ENTERS = "stream, end"
"""Where codes enter: fits of other places mean something else."""


def keep(folder: Path, population: Latent, model: str, figures: LatentFigures) -> None:
    """Write a fit; `fit.json`, which seals the tensors, makes it one.

    Args:
        model: fingerprint of the model's weights.

    Raises:
        TtrlPopError: something else stands in its place.
    """
    tensors = {"directions": population.directions0, "size_x": population.size_x}
    content = safetensors.torch.save({name: value.detach().cpu().contiguous() for name, value in tensors.items()})
    write_atomic(folder / TENSORS, content)
    row = {
        "model": model,
        "split": population.split,
        "level": population.options.level,
        "enters": ENTERS,
        **asdict(figures),
        "seal": reading.seal(content),
    }
    write_atomic(folder / FIGURES, (json.dumps(row, indent=1) + "\n").encode())


def load_kept(folder: Path, population: Latent, model: str) -> LatentFigures:
    """Let the population begin from a fit that was kept.

    Raises:
        DamagedError: there is none, or it is not what was written.
        UsageError: it is one of another model, or of other codes.
    """
    row = reading.read_object(folder / FIGURES)
    content = reading.read_bytes(folder / TENSORS, LARGEST)
    if row.get("seal") != reading.seal(content):
        raise DamagedError(folder / TENSORS, "has other bytes than were written")
    own = {"model": model, "split": population.split, "level": population.options.level, "enters": ENTERS}
    for name, value in own.items():
        if row.get(name) != value:
            raise UsageError(f"{folder}: the fit is one of {name} {row.get(name)!r}, this is {value!r}; fit it again")
    try:
        tensors = safetensors.torch.load(content)
        values = {field.name: row[field.name] for field in fields(LatentFigures)}
        directions_HPD, size_x = tensors["directions"], float(tensors["size_x"])
    except (SafetensorError, KeyError, ValueError) as error:
        raise DamagedError(folder / FIGURES, f"is no fit that was written ({error})") from None
    if not all(type(value) in (int, float) for value in values.values()):
        raise DamagedError(folder / FIGURES, "must hold numbers only")
    figures = LatentFigures(**values)
    if directions_HPD.shape != population.directions.shape:
        (bits, *_, width), (asked, *_, wanted) = directions_HPD.shape, population.directions.shape
        raise UsageError(
            f"{folder}: the fit has {bits} bits of {width} numbers, asked for are {asked} of {wanted}; "
            "set population.options.bits, or fit it again"
        )
    population.set_fit(directions_HPD.to(population.directions), size_x, figures.gap_bits)
    return figures
