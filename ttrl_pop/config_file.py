"""The configuration as TOML and as KEY=VALUE, in and out; an unknown key is an error with the nearest one."""

import difflib
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import tomli_w
from pydantic import BaseModel, ValidationError

from ttrl_pop.config import Config
from ttrl_pop.errors import UsageError

S = TypeVar("S", bound=BaseModel)


def load_config(path: Path | None, overrides: Mapping[str, Any]) -> Config:
    """Defaults < the TOML file at `path` < `overrides` (dotted keys, as in `learn.lr`; None means not given).

    Raises:
        UsageError: the file cannot be read or parsed, a key is unknown, or a value is out of range.
    """
    tree: dict[str, Any] = {}
    if path is not None:
        try:
            tree = tomllib.loads(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"{path}: cannot be read ({error})") from error
        except tomllib.TOMLDecodeError as error:
            raise UsageError(f"{path}: not valid TOML: {error}") from error
    for dotted, value in overrides.items():
        if value is not None:
            _put(tree, dotted, value)
    return validate(Config, tree, source=str(path) if path else "configuration")


def validate(model: type[S], tree: Mapping[str, Any], source: str) -> S:
    """Build `model` from `tree`; the first violation becomes one line with the nearest known key.

    Raises:
        UsageError: see above.
    """
    try:
        return model.model_validate(tree)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        location = tuple(str(part) for part in first["loc"])
        key = ".".join(location)
        if first["type"] == "extra_forbidden":
            near = _nearest(key, _known_keys(model))
            hint = f"; did you mean {near!r}?" if near else ""
            raise UsageError(f"{source}: unknown key {key!r}{hint}") from None
        raise UsageError(f"{source}: {key}: {first['msg']}, got {first['input']!r}") from None


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
        return key.strip(), tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        return key.strip(), value


def _put(tree: dict[str, Any], dotted: str, value: Any) -> None:
    *parents, last = dotted.split(".")
    for name in parents:
        child = tree.setdefault(name, {})
        if not isinstance(child, dict):
            raise UsageError(f"configuration: {name!r} is a value, so {dotted!r} cannot be set")
        tree = child
    tree[last] = value


def _known_keys(model: type[BaseModel], prefix: str = "") -> list[str]:
    keys = []
    for name, field in model.model_fields.items():
        keys.append(prefix + name)
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            keys += _known_keys(field.annotation, f"{prefix}{name}.")
    return keys


def _nearest(key: str, known: list[str]) -> str | None:
    """The known key that `key` most likely stands for: one of that name in another table, else the most alike."""
    by_name: dict[str, str] = {}
    for full in known:
        by_name.setdefault(full.rpartition(".")[2], full)
    name = key.rpartition(".")[2]
    if name in by_name:
        return by_name[name]
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    return near[0] if near else next((by_name[n] for n in difflib.get_close_matches(name, by_name, n=1)), None)


def _without_none(tree: Any) -> Any:
    if isinstance(tree, dict):
        return {key: _without_none(value) for key, value in tree.items() if value is not None}
    if isinstance(tree, list):
        return [_without_none(value) for value in tree]
    return tree
