"""TOML → a study: arms, which are sets of settings, and how many seeds each gets.

    seeds = 3
    [settings]                      # every arm's, below what the command line sets
    baseline = true
    [arms.majority]                 # an arm's own, above all else; the first is what others are held up against
    [arms.coin]
    vote.reward = "coin"
    [arms.base]
    steps = 0
    [equal_tokens]                  # an arm without steps gets as many rollouts as another one's tokens make
    base = "majority"
    [curves]                        # texts are compared: curves with each other, at equal coherence
    heat = ["cool", "warm"]
    minds = ["cool", "noisy"]

A study under way has its file in its folder, with every setting of every arm written out.
"""

import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any

import tomli_w
from pydantic import Field, field_validator, model_validator

from ttrl_pop.config import Config, Positive, Section
from ttrl_pop.config_file import Layer, dump_config, layered, parse_layer, read_layer, validate
from ttrl_pop.errors import UsageError

NAMES = ("controls", "minds", "zero-shot", "noise", "diversity")
"""Studies that come with the program."""

_ARM = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,59}")

Settings = dict[str, Any]


class StudyFile(Section):
    """A study as its file has it."""

    name: str = ""
    """What it is called; else the name of its file."""
    seeds: Annotated[Positive, Field(le=1000)] = 3
    """Runs of each arm, of which the first has the seed that is set, the next one more, and so on."""
    source: str = ""
    """Where the problems came from, once the study is under way."""
    settings: Settings = Field(default_factory=dict)
    """Settings of every arm."""
    arms: Annotated[dict[str, Settings], Field(min_length=1)]
    """Settings of each arm, by its name."""
    equal_tokens: dict[str, str] = Field(default_factory=dict)
    """Arm without steps → the arm before it whose tokens it gets."""
    curves: dict[str, list[str]] = Field(default_factory=dict)
    """Curve → its arms. With curves, the texts of final answers are kept and compared (`ttrl_pop.study.texts`)."""
    problems: str = ""
    """File beside this one that is asked where no other is given."""

    @field_validator("arms")
    @classmethod
    def _are_names_of_folders(cls, arms: dict[str, Settings]) -> dict[str, Settings]:
        for name in arms:
            if not _ARM.fullmatch(name):
                raise ValueError(f"an arm has up to 60 letters, digits, dots, dashes and underscores; {name!r} has not")
        return arms

    @model_validator(mode="after")
    def _tokens_are_known(self) -> "StudyFile":
        order = [*self.arms]
        for arm, other in self.equal_tokens.items():
            if arm not in order or other not in order[: order.index(arm)]:
                raise ValueError(f"equal_tokens: {arm!r} must be an arm, and {other!r} an arm that stands before it")
        return self

    @model_validator(mode="after")
    def _curves_are_of_arms(self) -> "StudyFile":
        for curve, arms in self.curves.items():
            if unknown := [arm for arm in arms if arm not in self.arms]:
                raise ValueError(f"curves: {curve!r} must be a list of arms; {unknown[0]!r} is none")
            if len(set(arms)) < 2:
                raise ValueError(f"curves: {curve!r} needs two arms or more, got {arms}")
        return self


@dataclass(frozen=True, slots=True)
class Study:
    """Arms side by side."""

    name: str
    seeds: int
    arms: Mapping[str, Config]
    """The first is what the others are held up against."""
    equal_tokens: Mapping[str, str]
    """Arm without steps → the arm whose tokens it gets."""
    source: str = ""
    """Where the problems came from."""
    curves: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Curve → its arms; each is held up against those before it at equal coherence. Without curves, texts are not
    looked at."""

    @property
    def first(self) -> str:
        """The arm that others are held up against."""
        return next(iter(self.arms))

    def without(self, arms: Sequence[str]) -> "Study":
        """The study without some arms, and without those that get their tokens.

        Raises:
            UsageError: nothing is left.
        """
        gone = {*arms, *(arm for arm, other in self.equal_tokens.items() if other in arms)}
        kept = {name: config for name, config in self.arms.items() if name not in gone}
        if not kept:
            raise UsageError(f"study {self.name}: no arm is left without {', '.join(arms)}")
        tokens = {arm: other for arm, other in self.equal_tokens.items() if arm in kept}
        left = {curve: tuple(arm for arm in own if arm in kept) for curve, own in self.curves.items()}
        curves = {curve: own for curve, own in left.items() if len(own) > 1}
        return Study(self.name, self.seeds, kept, tokens, self.source, curves)

    def dumps(self) -> str:
        """The study as a file of its own, which needs no other settings."""
        tree = {
            "name": self.name,
            "seeds": self.seeds,
            "source": self.source,
            "equal_tokens": dict(self.equal_tokens),
            "curves": {curve: list(arms) for curve, arms in self.curves.items()},
            "arms": {name: tomllib.loads(dump_config(config)) for name, config in self.arms.items()},
        }
        return tomli_w.dumps(tree)


def read_study(name: str) -> StudyFile:
    """The study that comes with the program under this name, or that of a TOML file.

    Raises:
        UsageError: there is none, or it is no study.
    """
    if name in NAMES:
        return parse_study((files(__package__) / f"{name}.toml").read_text(encoding="utf-8"), name)
    path = Path(name)
    if path.suffix != ".toml" and not path.exists():
        raise UsageError(f"a study is one of {', '.join(NAMES)} or a TOML file, got {name!r}")
    return _checked(read_layer(path), path.stem)


def own_problems(name: str, file: StudyFile) -> str | None:
    """Path of the problems that a study has of its own; None where it is asked others."""
    if not file.problems:
        return None
    return str(files(__package__) / file.problems if name in NAMES else Path(name).parent / file.problems)


def parse_study(text: str, name: str) -> StudyFile:
    """The study in a TOML text.

    Raises:
        UsageError: it is none.
    """
    return _checked(parse_layer(text, f"study {name}"), name)


def _checked(layer: Layer, name: str) -> StudyFile:
    found = validate(StudyFile, layer.tree, source=layer.name)
    return found if found.name else found.model_copy(update={"name": name})


def designed(file: StudyFile, below: Sequence[Layer] = (), typed: Layer | None = None) -> Study:
    """The study with the settings of each arm put together: defaults < `below` < the study's < `typed` < the arm's.

    Args:
        below: presets and files of settings.
        typed: what the command line sets.

    Raises:
        UsageError: a setting is unknown or cannot be, or the arms cannot be compared.
    """
    common = [*below, Layer(f"study {file.name}, settings", file.settings), *([] if typed is None else [typed])]
    arms: dict[str, Config] = {}
    for name, tree in file.arms.items():
        config = layered([*common, Layer(f"study {file.name}, arm {name}", tree)], {})
        _check_arm(file, name, config)
        arms[name] = config
    first = next(iter(arms.values()))
    if odd := [name for name, config in arms.items() if config.problems != first.problems]:
        raise UsageError(
            f"study {file.name}: all arms are asked the same, so problems.* stands in settings; arm {odd[0]} differs"
        )
    curves = {curve: tuple(dict.fromkeys(own)) for curve, own in file.curves.items()}
    return Study(file.name, file.seeds, arms, file.equal_tokens, file.source, curves)


def _check_arm(file: StudyFile, name: str, config: Config) -> None:
    """Raises UsageError where the runs of an arm could not be compared."""
    where = f"study {file.name}, arm {name}"
    if not config.answers:
        raise UsageError(f"{where}: arms are compared by their final answers; leave answers = false out")
    if config.guard.stop_on_collapse:
        raise UsageError(f"{where}: a collapse is a result; leave guard.stop_on_collapse = true out")
    if config.holdout is not None:
        raise UsageError(
            f"{where}: runs of a study train on all problems and are judged by them; leave holdout out, and give the "
            "problems that it would take away to ttrl-pop eval --run"
        )
    if config.seed + file.seeds > 2**63:
        raise UsageError(f"{where}: {file.seeds} seeds from {config.seed} on are too large; take a smaller one")
    if name in file.equal_tokens and config.steps:
        raise UsageError(f"{where}: only an arm without training gets another one's tokens; set steps = 0")
