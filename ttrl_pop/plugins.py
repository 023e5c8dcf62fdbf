"""One door for populations, backends, graders, rewards and extractors; built-ins use it too. A name is, in this order,

1. the short name of a built-in, which nothing else can take: `majority`;
2. a short name that an installed package offers as an entry point, of the group `ttrl_pop.rewards` and likewise for the
   other kinds;
3. `package.module:Name`.

    [project.entry-points."ttrl_pop.rewards"]       in the pyproject.toml of the package
    short = "my_package.rewards:short_majority"

    load("reward", "short")

A plug-in is code that the *user* names on the command line or in the configuration; it is imported and trusted. What a
run's own files name is looked at first (`foreign`, `places`).
"""

import difflib
import importlib
import inspect
import re
import sys
import traceback
from collections.abc import Iterable, Iterator
from functools import reduce
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, TypeVar

from ttrl_pop.config import Config, Section
from ttrl_pop.errors import UsageError

T = TypeVar("T")

BUILT_IN: dict[str, dict[str, str]] = {
    "population": {
        "norm-noise": "ttrl_pop.population.norm_noise:NormNoise",
        "latent": "ttrl_pop.population.latent:Latent",
        "none": "ttrl_pop.population.base:NoPopulation",
    },
    "backend": {
        "hf": "ttrl_pop.sample.hf.backend:HfBackend",
        "vllm": "ttrl_pop.sample.vllm.backend:VllmBackend",
        "vllm-server": "ttrl_pop.sample.vllm_server.backend:VllmServerBackend",
    },
    "grader": {
        "math": "ttrl_pop.vote.graders.math:MathGrader",
        "exact": "ttrl_pop.vote.graders.exact:ExactGrader",
        "choice": "ttrl_pop.vote.graders.choice:ChoiceGrader",
    },
    "reward": {
        "majority": "ttrl_pop.vote.rewards.consensus:majority",
        "frequency": "ttrl_pop.vote.rewards.consensus:frequency",
        "gated": "ttrl_pop.vote.rewards.consensus:gated",
        "novelty": "ttrl_pop.vote.rewards.novelty:Novelty",
        "novelty-embedding": "ttrl_pop.vote.rewards.novelty:NoveltyEmbedding",
        "gold": "ttrl_pop.vote.rewards.gold:GoldReward",
        "format": "ttrl_pop.vote.rewards.consensus:form",
        "overlong": "ttrl_pop.vote.rewards.consensus:overlong",
        "coin": "ttrl_pop.vote.rewards.controls:coin",
        "shuffled": "ttrl_pop.vote.rewards.controls:shuffled",
    },
    "extractor": {
        "first-number": "ttrl_pop.vote.extract.numbers:extract_first_number",
        "last-number": "ttrl_pop.vote.extract.numbers:extract_last_number",
        "choice": "ttrl_pop.vote.extract.choice:extract_choice",
    },
}

OPTIONS: dict[str, dict[str, str]] = {
    "population": {
        "norm-noise": "ttrl_pop.population.options:NormNoiseOptions",
        "latent": "ttrl_pop.population.options:LatentOptions",
    },
    "backend": {
        "hf": "ttrl_pop.sample.hf.options:HfOptions",
        "vllm": "ttrl_pop.sample.vllm.options:VllmOptions",
        "vllm-server": "ttrl_pop.sample.vllm_server.options:VllmServerOptions",
    },
}
"""Where the options of built-in classes stand, which are described without torch; who is not here has none."""

BASES = {
    "population": "ttrl_pop.population.base:Population",
    "backend": "ttrl_pop.sample.backend:Backend",
    "grader": "ttrl_pop.vote.graders.base:Grader",
}
"""Kinds that are classes, and what they derive from; the others are anything that can be called."""

TAKES = {
    "population": ("options",),
    "backend": ("policy", "sampling", "options"),
    "grader": (),
    "reward": ("ballot",),
    "extractor": ("text", "finish_reason"),
}
"""What each kind is called with, the classes to be made."""

SETS = {"population": ("options", "_parameters"), "backend": ("policy", "sampling", "options", "meter")}
"""What an instance has once its base has been made, of the kinds whose bases do something then."""

WITH_OPTIONS = ("population", "backend")
"""Kinds whose classes say in `Options` what can be set."""

ENGINE = "backend_options.engine."
"""How keys begin that an engine of somebody else's takes as they are."""

_PATH = re.compile(r"[\w.]+:[\w.]+")

_PLACES = ("backend_options.urls.", "backend_options.folder")
"""How keys begin whose values are addresses or folders, whatever they look like."""

ALSO = {"extractor": ("auto", "regex:PATTERN")}
"""What can stand in the place of a name and is read by those who ask, not here."""


def load(kind: str, name: str) -> Any:
    """The object that `name` stands for: of the class, or callable, as its kind has to be.

    Args:
        kind: `population`, `backend`, `grader`, `reward` or `extractor`.

    Raises:
        UsageError: nothing has that name or two packages offer it, it cannot be imported, or it is of another kind.
    """
    path = BUILT_IN[kind].get(name) or (name if _is_path(name) else _offered(kind, name))
    module, _, attribute = path.partition(":")
    found = _imported(f"{kind} {name!r}", module, attribute)
    _check(kind, name, found)
    return found


def made(kind: str, found: type[T], *arguments: Any) -> T:
    """An instance of a population or a backend.

    Raises:
        UsageError: its class leaves out what the base does as one is made.
    """
    rule = f"{kind} {found.__name__}: __init__ must call super().__init__({', '.join(TAKES[kind])}) before all else"
    try:
        instance = found(*arguments)
    except AttributeError as error:
        # torch's own words where a module is given something before it is one.
        if "before Module.__init__() call" in str(error):
            raise UsageError(rule) from error
        raise
    if not all(hasattr(instance, name) for name in SETS[kind]):
        raise UsageError(rule)
    return instance


def installed(kind: str) -> list[str]:
    """Names that installed packages give and that can be asked for: no built-in has them, and a path or a sum of
    rewards has other marks."""
    taken = {*BUILT_IN[kind], *ALSO.get(kind, ()), *(["auto"] if kind == "backend" else [])}
    marks = {":", *("+*" if kind == "reward" else "")}
    names = {point.name for point in entry_points(group=f"ttrl_pop.{kind}s")}
    return sorted(name for name in names - taken if not marks & {*name})


def options_of(kind: str, name: str) -> type[Section] | None:
    """The table of options of a population or a backend; None where there is none, or `auto` has yet to decide.

    Args:
        kind: `population` or `backend`.

    Raises:
        UsageError: as `load` raises it.
    """
    if name in BUILT_IN[kind] or (kind == "backend" and name == "auto"):
        module, _, attribute = OPTIONS[kind].get(name, "").partition(":")
        return getattr(importlib.import_module(module), attribute) if module else None
    found: type[Section] = load(kind, name).Options
    return found


def foreign(config: Config) -> dict[str, str]:
    """What a configuration would have imported, by dotted key: names that are neither built in nor of an installed
    package, those among options, and whatever is handed on to an engine, where more can be named than is known here."""
    named = {
        "population.name": ("population", [config.population.name]),
        "backend": ("backend", [config.backend]),
        "vote.grader": ("grader", [config.vote.grader]),
        "vote.reward": ("reward", [term.rpartition("*")[2].strip() for term in config.vote.reward.split("+")]),
        "vote.extract": ("extractor", [config.vote.extract] if not config.vote.extract.startswith("regex:") else []),
    }
    found = {
        key: " and ".join(paths)
        for key, (kind, names) in named.items()
        if (paths := [name for name in names if name not in BUILT_IN[kind] and _is_path(name)])
    }
    for key, value in _options(config):
        if key.startswith(ENGINE) or (isinstance(value, str) and _PATH.fullmatch(value)):
            found[key] = str(value)
    return found


def places(config: Config) -> dict[str, str]:
    """Where a configuration would have something asked, sent or written, by dotted key: addresses among options, and
    folders among those of a backend. A population's are read alone."""
    return {
        key: value
        for key, value in _options(config)
        if isinstance(value, str)
        and (key.startswith(_PLACES) or "://" in value or (key.startswith("backend_options.") and _is_folder(value)))
    }


def _options(config: Config) -> Iterator[tuple[str, Any]]:
    """Each option of the population and of the backend, with its dotted key."""
    yield from _leaves(config.population.options, "population.options")
    yield from _leaves(config.backend_options, "backend_options")


def _is_folder(value: str) -> bool:
    return value.startswith("~") or "/" in value or "\\" in value


def _leaves(tree: Any, key: str) -> Iterator[tuple[str, Any]]:
    """Each value of nested tables and lists, with its dotted key."""
    if isinstance(tree, dict | list):
        for name, value in tree.items() if isinstance(tree, dict) else enumerate(tree):
            yield from _leaves(value, f"{key}.{name}")
    else:
        yield key, tree


def _is_path(name: str) -> bool:
    module, _, attribute = name.partition(":")
    return bool(module and attribute) and not module.startswith(".")


def _offered(kind: str, name: str) -> str:
    """`package.module:Name` of the entry point of that name."""
    points = entry_points(group=f"ttrl_pop.{kind}s")
    found = sorted(
        (point.dist.name if point.dist else "?", point.value.partition("[")[0].strip())
        for point in points
        if point.name == name
    )
    if not found:
        known = [*ALSO.get(kind, ()), *BUILT_IN[kind], *installed(kind)]
        hint = _hint(name, known) or ("" if ":" in name else "; no installed package offers it")
        raise UsageError(f"{kind} must be one of {', '.join(known)} or package.module:Name, got {name!r}{hint}")
    packages, paths = zip(*found, strict=True)
    if len(found) > 1:
        raise UsageError(
            f"{kind} {name!r} is offered by the packages {' and '.join(packages)}; "
            f"name the one that is meant: {' or '.join(paths)}"
        )
    if not _is_path(paths[0]):
        raise UsageError(f"{kind} {name!r}: package {packages[0]} must offer package.module:Name, got {paths[0]!r}")
    return str(paths[0])


def _imported(what: str, module_name: str, attribute: str) -> Any:
    """The attribute, with dots where it stands inside a class, of a module."""
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise UsageError(f"{what} cannot be imported ({error}{_place(error)})") from error
        raise UsageError(f"{what} cannot be imported ({error}); is its folder on PYTHONPATH?") from error
    except (Exception, SystemExit) as error:
        raise UsageError(f"{what} cannot be imported ({type(error).__name__}: {error}{_place(error)})") from error
    try:
        return reduce(getattr, attribute.split("."), module)
    except AttributeError as error:
        raise UsageError(
            f"{what}: module {module_name} has no {attribute!r}{_hint(attribute, vars(module))}"
        ) from error


def _check(kind: str, name: str, found: Any) -> None:
    """Raises UsageError where `found` is not of the kind that was asked for."""
    came = f"{name!r}, {_described(found)}"
    if kind in BASES:
        _check_class(kind, name, found, came)
    elif not callable(found):
        raise UsageError(f"{kind} must be callable, got {came}")
    elif (inspect.isroutine(found) or isinstance(found, type)) and _is_of_python(found):
        raise UsageError(f"{kind} must be made for it, to take ({', '.join(TAKES[kind])}), got {came} of Python's own")
    elif isinstance(found, type) and (kind == "extractor" or inspect.isabstract(found)):
        rule = "a function of (text, finish_reason)" if kind == "extractor" else "a function or a class with instances"
        raise UsageError(f"{kind} must be {rule}, got {came}")
    # A class that is a reward is made first; who makes it knows of what.
    if not (kind == "reward" and isinstance(found, type)) and not takes(found, len(TAKES[kind])):
        raise UsageError(f"{kind} must take ({', '.join(TAKES[kind])}), got {came} of {inspect.signature(found)}")


def _check_class(kind: str, name: str, found: Any, came: str) -> None:
    """Raises UsageError where `found` is no class of which a population, a backend or a grader can be made."""
    module, _, base_name = BASES[kind].partition(":")
    base = getattr(importlib.import_module(module), base_name)
    if not isinstance(found, type) or not issubclass(found, base):
        raise UsageError(f"{kind} must be a class derived from ttrl_pop.{base_name}, got {came}")
    if inspect.isabstract(found):
        missing = ", ".join(sorted(getattr(found, "__abstractmethods__", ())))
        raise UsageError(f"{kind} {name!r}: {found.__name__} must define {missing}, as ttrl_pop.{base_name} asks")
    options = getattr(found, "Options", None)
    if kind in WITH_OPTIONS and not (isinstance(options, type) and issubclass(options, Section)):
        raise UsageError(f"{kind} {name!r}: {found.__name__}.Options must be a class derived from ttrl_pop.Section")
    _check_methods(f"{kind} {name!r}", found, base)


def _check_methods(what: str, found: type, base: type) -> None:
    """Raises UsageError where a method of the base is something else in a class derived from it."""
    for name, method in vars(base).items():
        own = inspect.getattr_static(found, name)
        if name.startswith("_") or not inspect.isfunction(method) or own is method:
            continue
        parameters = [*inspect.signature(method).parameters][1:]
        count = len(parameters) if isinstance(own, staticmethod | classmethod) else 1 + len(parameters)
        called = getattr(found, name)
        if not callable(called) or not takes(called, count):
            came = inspect.signature(called) if callable(called) else _described(own)
            rule = f"must be a method that takes ({', '.join(parameters)})"
            raise UsageError(f"{what}: {found.__name__}.{name} {rule}, got {came}")


def takes(found: Any, count: int) -> bool:
    """Whether something can be called with so many arguments; what does not tell is taken at its word."""
    try:
        signature = inspect.signature(found)
    except (ValueError, TypeError):
        return True
    try:
        signature.bind(*range(count))
    except TypeError:
        return False
    return True


def _is_of_python(found: Any) -> bool:
    """Whether it stands in the standard library, where nothing is a plug-in."""
    module: Any = getattr(found, "__module__", None)
    return isinstance(module, str) and module.partition(".")[0] in sys.stdlib_module_names


def _described(found: Any) -> str:
    """What came in the place of a plug-in."""
    if isinstance(found, type):
        return f"the class {found.__name__}"
    kind = type(found).__name__
    return f"{'an' if kind[0] in 'aeiou' else 'a'} {kind}"


def _hint(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


def _place(error: BaseException) -> str:
    """Where a module failed while it was imported; a SyntaxError says so itself."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not frame.filename.startswith("<")]
    if isinstance(error, SyntaxError) or not frames:
        return ""
    return f"; {Path(frames[-1].filename).name}, line {frames[-1].lineno}"
