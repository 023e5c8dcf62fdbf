"""identity.json: which model and problems a run is of, and what each file beside its checkpoints is known by.

    {"model": FINGERPRINT, "tokenizer": FINGERPRINT, "problems": FINGERPRINT, "source": "hf:NAME@COMMIT",
     "files": {"config.toml": [SEAL], …}, "seal": SEAL of the rest}

A file's seal is noted before the file is written, so that a kill in between leaves a file that is known: as the one
before, of which the seal is kept, or as missing, and then it is made again. Rollouts carry a checksum of their own, and
a checkpoint has its MANIFEST.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ttrl_pop.errors import DamagedError
from ttrl_pop.store import reading
from ttrl_pop.store.directory import RunDirectory
from ttrl_pop.store.files import write_atomic

CONFIG, PROBLEMS, GOLD = "config.toml", "problems.jsonl", "gold.jsonl"
"""Files without which a run is nothing, or another one."""

HINT = "put it back from a copy, or start a new run"
"""What to do where one of them is damaged."""


@dataclass(frozen=True, slots=True)
class Identity:
    """What a run is known by."""

    model: str
    """Fingerprint of the model's weights."""
    tokenizer: str
    """Fingerprint of its tokenizer and chat template, of which prompts are made."""
    problems: str
    """Fingerprint of the problems."""
    source: str
    """Where the problems were read from, of a data set of the hub with the commit. For people: nothing reads it."""
    files: Mapping[str, tuple[str, ...]]
    """Seals that a file may have, by its name: the newest, and the one before while it is replaced."""

    def dumps(self) -> str:
        """The content of identity.json."""
        rest: dict[str, Any] = {
            "model": self.model,
            "tokenizer": self.tokenizer,
            "problems": self.problems,
            "source": self.source,
            "files": dict(self.files),
        }
        return json.dumps({**rest, "seal": _seal(rest)}, indent=1) + "\n"


def of(model: str, tokenizer: str, problems: str, source: str, files: Mapping[str, str]) -> Identity:
    """The identity of a new run with these files, by name; one without content is not written."""
    seals = {name: (reading.seal(content.encode()),) for name, content in files.items() if content}
    return Identity(model, tokenizer, problems, source, seals)


def load(run: RunDirectory) -> Identity:
    """The identity of a run.

    Raises:
        DamagedError: its file is not what was written.
    """
    try:
        found = reading.read_object(run.identity)
    except DamagedError as error:
        raise DamagedError(run.identity, f"{error.reason}; {HINT}") from None
    if "seal" not in found:
        raise DamagedError(run.identity, f"has no seal, as other versions wrote it, or has been changed; {HINT}")
    if found.pop("seal") != _seal(found):
        raise DamagedError(run.identity, f"has been changed; {HINT}")
    # Whoever can write a seal can write anything: a stranger's is looked at all the same.
    told, files = [found.get(key) for key in ("model", "tokenizer", "problems", "source")], found.get("files")
    if not (all(isinstance(each, str) for each in told) and isinstance(files, dict)):
        raise DamagedError(run.identity, f"must name model, tokenizer, problems, their source and files; {HINT}")
    model, tokenizer, problems, source = map(str, told)
    seals = {name: tuple(s) if isinstance(s, list) else () for name, s in files.items()}
    return Identity(model, tokenizer, problems, source, seals)


def check(run: RunDirectory, identity: Identity, name: str) -> None:
    """Check that a file without which there is no run is what the run wrote.

    Raises:
        DamagedError: it is not; says what to do.
    """
    if (found := flaw(run, identity, name)) is not None or name not in identity.files:
        raise DamagedError(run.path / name, f"{found or 'was not written by this run'}; {HINT}")


def flaw(run: RunDirectory, identity: Identity, name: str) -> str | None:
    """What is wrong with a file that the run has written; None where nothing is, or where it wrote none."""
    if name not in identity.files:
        return None
    try:
        reading.verify(run.path / name, *identity.files[name])
    except DamagedError as error:
        return error.reason
    return None


def read(run: RunDirectory, identity: Identity, name: str) -> str:
    """The text of a small file of the run.

    Raises:
        DamagedError: it is not what the run wrote.
    """
    check(run, identity, name)
    return reading.read_bytes(run.path / name).decode()


def record(run: RunDirectory, name: str, content: bytes) -> None:
    """Write a file of the run, known by its seal from then on."""
    identity = load(run)
    standing = [seal for seal in identity.files.get(name, ()) if _has(run.path / name, seal)]
    seals = tuple(dict.fromkeys([*standing, reading.seal(content)]))
    changed = replace(identity, files={**identity.files, name: seals})
    write_atomic(run.identity, changed.dumps().encode())
    write_atomic(run.path / name, content)


def _has(path: Path, seal: str) -> bool:
    """Whether the file is what this seal was made of."""
    try:
        reading.verify(path, seal)
    except DamagedError:
        return False
    return True


def _seal(rest: Mapping[str, Any]) -> str:
    return reading.seal(json.dumps(rest, sort_keys=True).encode())
