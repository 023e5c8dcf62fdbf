"""Every setting with its value, what it takes and what it means: as commented TOML, and as a JSON schema.

Both are made of the configuration's classes and the texts below their settings (`ttrl_pop.config.Section`).
"""

import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import tomli_w
from pydantic import BaseModel

from ttrl_pop.config import Config, Section
from ttrl_pop.plugins import OPTIONS, options_of

WIDTH = 120
"""Columns of commented TOML."""

LARGEST = 2**31
"""Bounds from which on they say nothing to a reader."""

OPTION_TABLES = {"population.options": "population", "backend_options": "backend"}
"""Tables that a plug-in describes, by its kind."""

HEAD = """\
Settings of ttrl-pop, as --config takes them. In square brackets stands what a setting takes. A line that is commented
out sets nothing (None), or shows the default of a plug-in."""

_KINDS = {"string": "text", "integer": "a whole number", "number": "a number", "boolean": "true or false"}
_KINDS |= {"array": "a list", "object": "a table"}


@dataclass(frozen=True, slots=True)
class Setting:
    """A setting, as a reader is told of it."""

    name: str
    value: Any
    """As TOML has it; None: not set."""
    takes: str
    """What it can be, in words."""
    meaning: str
    is_set: bool = True
    """Whether it is part of the configuration; an option that was left out has its plug-in's default."""


@dataclass(frozen=True, slots=True)
class Table:
    """A table of settings; that of the root has no name."""

    name: str
    meaning: str
    settings: tuple[Setting, ...]


def tables(config: Config) -> Iterator[Table]:
    """Yield all tables of a configuration, each before those inside it, and each of its plug-ins' in its place.

    Raises:
        UsageError: a plug-in that it names cannot be had.
    """
    yield from _tables(config, "", config)


def commented_toml(config: Config) -> str:
    """The whole configuration as TOML that `--config` reads back to an equal one."""
    lines = [*_comment(HEAD), ""]
    for table in tables(config):
        if table.name:
            lines += [*_comment(table.meaning), f"[{table.name}]"]
        for setting in table.settings:
            lines += _comment(f"{setting.meaning} [{setting.takes}]")
            value = "" if setting.value is None else literal(setting.value)
            lines.append(f"{'' if setting.is_set and value else '# '}{_key(setting.name)} = {value}".rstrip())
        lines.append("")
    return "\n".join(lines)


def json_schema() -> dict[str, Any]:
    """A JSON schema of a configuration file, in which the options of built-in plug-ins are described."""
    schema = Config.model_json_schema()
    definitions = schema["$defs"]
    for place, kind in OPTION_TABLES.items():
        owner, _, field = place.rpartition(".")
        holder = definitions[type(getattr(Config(), owner)).__name__] if owner else schema
        known = [found for name in OPTIONS[kind] if (found := options_of(kind, name)) is not None]
        for table in known:
            definitions[table.__name__] = table.model_json_schema()
        others = {"type": "object", "description": "Options of a plug-in."}
        choices = [*({"$ref": f"#/$defs/{table.__name__}"} for table in known), others]
        described = {key: value for key, value in holder["properties"][field].items() if key == "description"}
        holder["properties"][field] = {**described, "anyOf": choices}
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, "title": "ttrl-pop"}


def literal(value: Any) -> str:
    """A value as TOML has it, on one line."""
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{_key(key)} = {literal(inner)}' for key, inner in value.items())}}}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(literal, value))}]"
    return tomli_w.dumps({"x": value}).removeprefix("x = ").removesuffix("\n")


def _tables(section: Section, name: str, config: Config, meaning: str = "") -> Iterator[Table]:
    schema = type(section).model_json_schema()
    values = section.model_dump(mode="json")
    settings, inner = [], []
    for field, info in type(section).model_fields.items():
        place = f"{name}.{field}".lstrip(".")
        value = getattr(section, field)
        told = " ".join((info.description or "").split())
        if isinstance(value, Section):
            inner.append(_tables(value, place, config, told))
        elif place in OPTION_TABLES:
            inner.append(_options(place, value, config, told))
        else:
            settings.append(Setting(field, values[field], _takes(schema["properties"][field]), told))
    yield Table(name, meaning, tuple(settings))
    for tables_inside in inner:
        yield from tables_inside


def _options(place: str, given: Mapping[str, Any], config: Config, meaning: str) -> Iterator[Table]:
    """The table of a plug-in's options: those that are given, and those that are left to their defaults."""
    kind = OPTION_TABLES[place]
    name = config.population.name if kind == "population" else config.backend
    known = options_of(kind, name)
    defaults = _defaults(known) if known else {}
    schema = known.model_json_schema().get("properties", {}) if known else {}
    settings = []
    for option in [*defaults, *(option for option in given if option not in defaults)]:
        told = " ".join(schema.get(option, {}).get("description", f"An option of {name}.").split())
        value = given.get(option, defaults.get(option))
        settings.append(Setting(option, value, _takes(schema.get(option, {})), told, option in given))
    yield Table(place, f"{meaning} These are those of {name}.", tuple(settings))


def _defaults(options: type[BaseModel]) -> dict[str, Any]:
    fields = {name: field.get_default(call_default_factory=True) for name, field in options.model_fields.items()}
    return options.model_construct(**fields).model_dump(mode="json")


def _takes(schema: Mapping[str, Any]) -> str:
    """What a property of a JSON schema can be, in words."""
    if "anyOf" in schema:
        return " or ".join(dict.fromkeys(_takes(part) for part in schema["anyOf"] if part.get("type") != "null"))
    if "enum" in schema:
        return " or ".join(map(literal, schema["enum"]))
    if "const" in schema:
        return literal(schema["const"])
    if schema.get("format") == "date":
        return "a date"
    words = _KINDS.get(schema.get("type", ""), "anything")
    bounds = (
        ("minimum", "from"),
        ("exclusiveMinimum", "above"),
        ("maximum", "up to"),
        ("exclusiveMaximum", "below"),
    )
    limits = [f"{word} {schema[key]:g}" for key, word in bounds if key in schema and schema[key] < LARGEST]
    return " ".join([words, *limits])


def _key(name: str) -> str:
    return tomli_w.dumps({name: 0}).removesuffix(" = 0\n")


def _comment(text: str) -> list[str]:
    return textwrap.wrap(" ".join(text.split()), WIDTH, initial_indent="# ", subsequent_indent="# ")
