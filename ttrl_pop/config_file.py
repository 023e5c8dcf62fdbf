"""The configuration as TOML and as KEY=VALUE, in and out; an unknown key is an error with the nearest one."""

import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import tomli_w
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from ttrl_pop.config import Config
from ttrl_pop.errors import UsageError
from ttrl_pop.settings import hint
from ttrl_pop.text import shown

S = TypeVar("S", bound=BaseModel)

LONGEST = 2**20
"""Bytes of a configuration."""

DEEPEST = 20
"""Tables and lists inside each other."""

SHOWN = 80
"""Characters of a wrong value that an error shows."""

_LONE_SURROGATE = re.compile("[\ud800-\udfff]")

EXPECTED = {
    "literal_error": "{expected}",
    "string_type": "a text",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "tuple_type": "a list",
    "list_type": "a list",
    "dict_type": "a table",
    "model_type": "a table",
}
"""pydantic's errors that say that a value is of another type, and what should have come, as TOML calls it."""


@dataclass(frozen=True, slots=True)
class Layer:
    """A file of settings, read and not yet checked against what settings there are."""

    name: str
    """What errors call it."""
    tree: Mapping[str, Any]


def read_layer(path: Path, text: str | None = None) -> Layer:
    """The settings in the TOML file at `path`.

    Args:
        text: what is in the file, where it has been read.

    Raises:
        UsageError: the file cannot be read or parsed.
    """
    return parse_layer(_text_of(path) if text is None else text, str(path))


def parse_layer(text: str, name: str) -> Layer:
    """The settings in a TOML text that errors call `name`.

    Raises:
        UsageError: the text cannot be parsed.
    """
    tree = _parsed(text, name)
    _check_tree(tree, name)
    return Layer(name, tree)


def typed_layer(values: Mapping[str, Any], name: str) -> Layer:
    """Settings by dotted key as a layer, which others can lie above; None means not given.

    Raises:
        UsageError: a key leads into a value.
    """
    tree: dict[str, Any] = {}
    for dotted, value in values.items():
        if value is not None:
            _put(tree, dotted, value)
    _check_tree(tree, name)
    return Layer(name, tree)


def load_config(path: Path | None, overrides: Mapping[str, Any], text: str | None = None) -> Config:
    """Defaults < the TOML file at `path` < `overrides`, as `layered` puts them together.

    Args:
        text: what is in the file, where it has been read.
    """
    return layered([] if path is None else [read_layer(path, text)], overrides)


def layered(layers: Sequence[Layer], overrides: Mapping[str, Any]) -> Config:
    """Defaults < `layers` in their order < `overrides` (dotted keys, as in `learn.lr`; None means not given).

    Options belong to the population and to the backend that are named with them: where a later layer names another one,
    those of the layers below are dropped.

    Raises:
        UsageError: a key is unknown, or a value is out of range; names the layer.
    """
    trees: list[dict[str, Any]] = [{}]
    for layer in layers:
        below = _kept_below(trees[-1], _at(layer.tree, "population.name"), _at(layer.tree, "backend"))
        trees.append(_laid_over(below, layer.tree))
    given = {key: value for key, value in overrides.items() if value is not None}
    whole = _kept_below(trees[-1], given.get("population.name"), given.get("backend"))
    for dotted, value in given.items():
        _put(whole, dotted, value)
    _check_tree(whole, "command line")
    try:
        return validate(Config, whole, source="command line" if layers else "configuration")
    except UsageError:
        # Where a file is wrong by itself, it is what is named.
        for layer, tree in zip(layers, trees[1:], strict=True):
            validate(Config, tree, source=layer.name)
        raise


def validate(model: type[S], tree: Mapping[str, Any], source: str) -> S:
    """Build `model` from `tree`; the first violation becomes one line with the nearest known key.

    Raises:
        UsageError: see above.
    """
    try:
        return model.model_validate(tree)
    except ValidationError as error:
        location, message = _violation(tree, error.errors(include_url=False))
        key = ".".join(location)
        if message is None:
            near = hint(key, model, tree)
            meant = f"; did you mean {near!r}?" if near else ""
            raise UsageError(f"{source}: unknown key {key!r}{meant}") from None
        raise UsageError(": ".join(part for part in (source, key, message) if part)) from None


def _violation(tree: Any, errors: Sequence[ErrorDetails]) -> tuple[tuple[str, ...], str | None]:
    """Where the first violation is, and what is wrong there; None where the key is unknown.

    A value that fits no branch of a union comes as several errors, with the branch in their locations. The branch that
    was meant is the one of the value's type, which refused it for its size or for what is inside it; where there is
    none, all branches are named.
    """
    first = errors[0]
    depth, value = _union(tree, first)
    here = first["loc"][:depth]
    where = tuple(map(str, here))
    if depth == len(first["loc"]):
        return where, in_words(first)
    branches = [error for error in errors if error["loc"][:depth] == here]
    for error in branches:
        inside = error["loc"][depth + 1 :]
        if inside or error["type"] not in EXPECTED:
            deeper, message = _violation(value, [{**error, "loc": inside}])
            return where + deeper, message
    wanted = " or ".join(dict.fromkeys(map(_expected, branches)))
    return where, f"Input should be {wanted}, got {_shown(value)}"


def _union(tree: Any, error: ErrorDetails) -> tuple[int, Any]:
    """How many parts of the error's location lead through keys and indices, and the value there. The next part, where
    there is one, names a branch of a union."""
    value = tree
    for depth, part in enumerate(error["loc"]):
        if error["type"] == "missing" and depth == len(error["loc"]) - 1:
            break
        if isinstance(value, Mapping):
            if part not in value:
                return depth, value
        elif not isinstance(value, list | tuple) or not isinstance(part, int):
            return depth, value
        value = value[part]
    return len(error["loc"]), value


def in_words(error: ErrorDetails) -> str | None:
    """What is wrong with a value, and what came; None where the key is unknown."""
    if error["type"] == "extra_forbidden":
        return None
    if error["type"] == "missing":
        return "must be given"
    message = f"Input should be {_expected(error)}" if error["type"] in EXPECTED else error["msg"]
    return f"{message.removeprefix('Value error, ')}, got {_shown(error['input'])}"


def _shown(value: Any) -> str:
    try:
        return shown(repr(value), SHOWN)
    except ValueError:
        return "a number of thousands of digits"


def _expected(error: ErrorDetails) -> str:
    """What a value of the wrong type should have been."""
    return EXPECTED[error["type"]].format(**error.get("ctx", {}))


def dump_config(config: Config) -> str:
    """The whole configuration as TOML that `load_config` reads back to an equal `Config`."""
    return tomli_w.dumps(_without_none(config.model_dump(mode="json")))


def parse_assignment(text: str) -> tuple[str, Any]:
    """`learn.loss=grpo` → `("learn.loss", "grpo")`; the value is read as TOML where it is valid TOML.

    Raises:
        UsageError: there is no `=`.
    """
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise UsageError(f"--set takes KEY=VALUE (as in learn.loss=grpo), got {text!r}")
    try:
        found = tomllib.loads(f"value = {value}")
    except tomllib.TOMLDecodeError:
        return key.strip(), value
    except (ValueError, RecursionError) as error:
        raise UsageError(f"--set {key.strip()}: {_too_much(error)}") from None
    # A line break may end the value and begin another key.
    return key.strip(), found["value"] if [*found] == ["value"] else value


def leaves(key: str, value: Any) -> Iterator[tuple[str, Any]]:
    """What a value sets, by dotted key: a table sets what is in it and leaves the rest as it is, an empty one leaves
    nothing."""
    if isinstance(value, Mapping) and value and not any("." in str(name) for name in value):
        for name, inner in value.items():
            yield from leaves(f"{key}.{name}", inner)
    else:
        yield key, value


def _text_of(path: Path) -> str:
    """What is in a file of the user's, which may be a pipe.

    Raises:
        UsageError: it cannot be read, is no text, or does not end.
    """
    try:
        with path.open("rb") as file:
            content = file.read(LONGEST + 1)
        if len(content) > LONGEST:
            raise UsageError(f"{path}: a configuration has at most {LONGEST} bytes, this has more; name a TOML file")
        # Windows' Notepad begins a file with a mark.
        return content.decode("utf-8-sig")
    except FileNotFoundError as error:
        raise UsageError(f"{path}: no such file") from error
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        byte = error.object[error.start]
        raise UsageError(f"{path}: not valid UTF-8 (byte 0x{byte:02x}); save the file as UTF-8") from error


def _parsed(text: str, source: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{source}: not valid TOML: {error}") from error
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{source}: {_too_much(error)}") from error


def _too_much(error: Exception) -> str:
    """What is valid TOML and still no value, in words."""
    if isinstance(error, RecursionError):
        return f"values are nested at most {DEEPEST} deep; this is deeper"
    return "a whole number has at most 18 digits; this has thousands"


def _check_tree(tree: Mapping[str, Any], source: str) -> None:
    """Refuse what cannot be checked or saved.

    Raises:
        UsageError: tables and lists are nested too deeply, or a text is none that UTF-8 can write.
    """
    level: list[tuple[str, Any]] = [("", tree)]
    for _ in range(DEEPEST + 1):
        deeper: list[tuple[str, Any]] = []
        for place, value in level:
            if isinstance(value, Mapping):
                deeper += [(f"{place}.{key}".lstrip("."), part) for key, part in value.items()]
                texts = [*value]
            else:
                texts = [value] if isinstance(value, str) else []
                deeper += [(place, part) for part in value] if isinstance(value, list | tuple) else []
            for text in texts:
                if (found := _LONE_SURROGATE.search(text)) is not None:
                    raise UsageError(
                        f"{source}: {place or 'a key'} holds \\u{ord(found[0]):04x}, half of a surrogate pair, "
                        "which no text has; write it as UTF-8"
                    )
        if not (level := deeper):
            return
    raise UsageError(f"{source}: values are nested at most {DEEPEST} deep; {level[0][0][:40]}… is deeper")


def _laid_over(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of both, those of `above` where both have one; tables are put together key by key."""
    whole = dict(below)
    for key, value in above.items():
        under = whole.get(key)
        if isinstance(under, Mapping) and isinstance(value, Mapping):
            whole[key] = _laid_over(under, value)
        else:
            whole[key] = deepcopy(value)
    return whole


def _kept_below(tree: Mapping[str, Any], population: Any, backend: Any) -> dict[str, Any]:
    """A copy of `tree`, without the options of another population or backend than is named above it; None names none.
    Those of `auto` stay, as it may stand for any backend."""
    kept = deepcopy(dict(tree))
    if population not in (None, _at(tree, "population.name") or Config().population.name):
        options = kept.get("population")
        if isinstance(options, dict):
            options.pop("options", None)
    if backend not in (None, named := _at(tree, "backend") or Config().backend) and named != "auto":
        kept.pop("backend_options", None)
    return kept


def _at(tree: Mapping[str, Any], dotted: str) -> Any:
    """The value that a dotted key leads to; None where there is none."""
    value: Any = tree
    for name in dotted.split("."):
        value = value.get(name) if isinstance(value, Mapping) else None
    return value


def _put(tree: dict[str, Any], dotted: str, value: Any) -> None:
    *parents, last = dotted.split(".")
    for name in parents:
        child = tree.setdefault(name, {})
        if not isinstance(child, dict):
            raise UsageError(f"configuration: {name!r} is a value, so {dotted!r} cannot be set")
        tree = child
    tree[last] = value


def _without_none(tree: Any) -> Any:
    if isinstance(tree, dict):
        return {key: _without_none(value) for key, value in tree.items() if value is not None}
    if isinstance(tree, list):
        return [_without_none(value) for value in tree]
    return tree
